// A slide that holds more than fits gets smaller letters; formulas are set when it is shown.
function fit(section) {
  for (let size = 100; section.scrollHeight > 720 && size > 55; size -= 5) {
    section.style.fontSize = size - 5 + "%";
  }
}

async function show(event) {
  const section = event.currentSlide;
  if (!section.dataset.set) {
    section.dataset.set = "yes";
    await MathJax.startup.promise;
    await MathJax.typesetPromise([section]);
    fit(section);
  }
}

Reveal.on("ready", show);
Reveal.on("slidechanged", show);
Reveal.initialize({
  width: 1280, height: 720, margin: 0, center: false, display: "flex", hash: true,
  slideNumber: "c/t", transition: "none", plugins: [RevealNotes],
});
