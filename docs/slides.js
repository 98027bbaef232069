// Formulas are set when a slide is shown, no wider than it; what is too long gets smaller letters.
function fit(section) {
  for (const formula of section.querySelectorAll("mjx-container[display]")) {
    const wide = formula.querySelector("svg").clientWidth / formula.parentElement.clientWidth;
    if (wide > 1) formula.style.fontSize = 98 / wide + "%";
  }
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
