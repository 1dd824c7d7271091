// Shows what belongs to the slider's position: a marker in the chart, what was achieved, and the nearest films.
const slider = document.getElementById("target");

function show() {
  for (const part of document.querySelectorAll("[data-picks]")) {
    const picked = part.dataset.picks.split(" ").includes(slider.value);
    part.toggleAttribute("hidden", !picked);
    const video = part.querySelector("video");
    if (video && picked) video.play().catch(() => {});
    if (video && !picked) video.pause();
  }
}

if (slider) {
  slider.addEventListener("input", show);
  show();
}
