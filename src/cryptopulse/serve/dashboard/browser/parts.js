// Small parts that pages share: figures, what to say when there is nothing.

const EMPTY = {
  loading: "Reading the newest data …",
  empty: "There are no trades yet. Start the pipeline with “cryptopulse run”, or see it work with “cryptopulse demo”.",
  disconnected: "The server does not answer. This page tries again by itself.",
};

// What stands in the place of content that is not there, by the state of the data (`live.js`).
export function emptyText(state) {
  return state?.said ?? EMPTY[state?.name] ?? EMPTY.loading;
}

// A figure with its name above it, in `parent`; returns a function that sets its text, and its direction if any.
export function figure(parent, label, title) {
  const box = document.createElement("div");
  box.className = "cp-figure";
  if (title) box.title = title;
  const name = Object.assign(document.createElement("span"), { textContent: label });
  const value = Object.assign(document.createElement("b"), { textContent: "–" });
  box.append(name, value);
  parent.append(box);
  return (text, direction) => {
    if (value.textContent !== text) value.textContent = text;
    if (direction) value.dataset.direction = direction;
    else delete value.dataset.direction;
  };
}

// Figures that the server hands over: options {figures: [{label, text, direction, title}]}.
export function mount(element, options) {
  element.classList.add("cp-strip");
  let setters = [];
  const change = ({ figures }) => {
    if (setters.length !== figures.length) {
      element.replaceChildren();
      setters = figures.map(({ label, title }) => figure(element, label, title));
    }
    figures.forEach(({ text, direction }, place) => setters[place](text, direction));
  };
  change(options);
  return { change };
}
