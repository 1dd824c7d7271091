"""`dt import-huggingface`: a run of a model that Hugging Face's library has trained."""

from dt.cli.environments import environment_to_play_in
from dt.cli.options import ImportHuggingFace
from dt.sharing.huggingface_config import Published, read_published
from envs.datasets.loading import load
from transformer.files import check_new
from transformer.runs.console import tell
from transformer.runs.outputs import check_folder


def run(options: ImportHuggingFace) -> None:
    """Read the model's settings, then make the run."""
    published = published_model(options)
    _import(options, published)  # torch comes in here


def published_model(options: ImportHuggingFace) -> Published:
    """What `dt import-huggingface` makes a run of, all but the weights; a place for it that is taken is refused."""
    check_folder(options.output)
    check_new(options.output)
    return read_published(
        options.model,
        context_length=options.context_length,
        return_scale=options.return_scale,
        normalizer=options.normalizer,
        dataset=load(options.dataset) if options.dataset is not None else None,
        environment=environment_to_play_in(options.env),
    )


def _import(options: ImportHuggingFace, published: Published) -> None:
    """`dt import-huggingface`: a run of someone else's model."""
    from dt.sharing.huggingface import import_published

    run = import_published(published, options.output)
    tell(f"run folder    {run.folder}\nevaluate      dt evaluate {run.folder} --target-return G")
