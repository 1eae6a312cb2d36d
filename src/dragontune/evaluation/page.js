// One clip at a time; a line follows the sound; a click in the picture goes there. Without scripts the players still work.
for (const side of document.querySelectorAll(".side")) {
  const audio = side.querySelector("audio"), picture = side.querySelector(".picture"), head = side.querySelector(".head");
  const follow = () => {
    head.style.left = `${100 * audio.currentTime / (audio.duration || 1)}%`;
    head.style.visibility = audio.currentTime > 0 && !audio.ended ? "visible" : "hidden";
    if (!audio.paused) requestAnimationFrame(follow);
  };
  side.classList.add("playable");
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    follow();
  });
  for (const event of ["seeked", "ended", "pause"]) audio.addEventListener(event, follow);
  picture.addEventListener("click", (click) => {
    const box = picture.getBoundingClientRect();
    if (isFinite(audio.duration)) audio.currentTime = audio.duration * (click.clientX - box.left) / box.width;
    audio.play();
  });
}
