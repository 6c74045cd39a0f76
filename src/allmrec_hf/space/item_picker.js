// The picker of a history: a combobox that searches while one types, and the picked items as buttons that remove them.
// Titles enter the page as text nodes alone.
const find = (name) => element.querySelector("." + name);
const input = find("am-input"), options = find("am-options"), chips = find("am-chips");
const examples = find("am-examples"), said = find("am-said"), hint = find("am-hint"), clear = find("am-clear");
let found = [], active = -1, asked = 0, timer = null;

const picked = () => (Array.isArray(props.value) ? props.value : []);
const bdi = (text) => {
  const node = document.createElement("bdi");
  node.dir = "auto";
  node.textContent = text;
  return node;
};
const button = (className, onClick) => {
  const node = document.createElement("button");
  node.type = "button";
  node.className = className;
  node.addEventListener("click", onClick);
  return node;
};

function set(items, told) {
  props.value = items;
  said.textContent = told;
  draw();
}

function draw() {
  chips.replaceChildren(
    ...picked().map((item, place) => {
      const node = document.createElement("li");
      const remove = button("am-chip", () => {
        set(picked().filter((_, other) => other !== place), "Removed " + item.title);
        const left = chips.querySelectorAll("button");
        (left[Math.min(place, left.length - 1)] || input).focus();
      });
      remove.setAttribute("aria-label", "Remove " + item.title);
      const cross = document.createElement("span");
      cross.textContent = "×";
      cross.setAttribute("aria-hidden", "true");
      remove.append(bdi(item.title), cross);
      node.append(remove);
      return node;
    })
  );
  const none = picked().length === 0;
  chips.hidden = clear.hidden = none;
  hint.textContent = none
    ? "Arrow keys choose, Enter picks. Oldest first: the last item counts most."
    : "Enter in the empty field recommends; Backspace there takes the last item back.";
}

function drawExamples() {
  examples.replaceChildren(
    ...(props.examples || []).map((example) => {
      const node = button("am-example", () => {
        set(example.items, "Took the example " + example.name);
        close();
        setTimeout(() => trigger("submit"), 60); // after the change has been seen
      });
      node.append(bdi(example.name));
      return node;
    })
  );
}

function close() {
  found = [];
  active = -1;
  options.hidden = true;
  options.replaceChildren();
  input.setAttribute("aria-expanded", "false");
  input.removeAttribute("aria-activedescendant");
}

function tell(text) {
  found = [];
  active = -1;
  const node = document.createElement("li");
  node.className = "am-none";
  node.textContent = text;
  options.replaceChildren(node);
  options.hidden = false;
  said.textContent = text;
}

function choose(place) {
  const item = found[place];
  if (!item) return;
  const known = picked().some((other) => other.item_id === item.item_id);
  if (!known) set([...picked(), item], "Picked " + item.title);
  input.value = "";
  close();
  input.focus();
}

function mark(place) {
  active = place;
  input.removeAttribute("aria-activedescendant");
  [...options.children].forEach((node, other) => {
    node.setAttribute("aria-selected", String(other === active));
    if (other === active) {
      input.setAttribute("aria-activedescendant", node.id);
      node.scrollIntoView({ block: "nearest" });
    }
  });
}

function show(items, typed) {
  if (items.length === 0) {
    tell("Nothing is called “" + typed + "”. Try one word of the title, or the item's id.");
    return;
  }
  found = items;
  options.replaceChildren(
    ...items.map((item, place) => {
      const node = document.createElement("li");
      node.id = "am-option-" + place;
      node.setAttribute("role", "option");
      const id = document.createElement("span");
      id.className = "am-id";
      id.append(bdi(item.item_id));
      node.append(bdi(item.title), id);
      node.addEventListener("mousedown", (event) => {
        event.preventDefault(); // the field keeps the focus
        choose(place);
      });
      return node;
    })
  );
  options.hidden = false;
  input.setAttribute("aria-expanded", "true");
  said.textContent = items.length + " found";
  mark(typed ? 0 : -1);
}

async function search() {
  const number = ++asked, typed = input.value.trim();
  const slow = setTimeout(() => number === asked && tell("Searching…"), 400);
  try {
    const items = await server.search(typed);
    if (number === asked && document.activeElement === input) show(items, typed);
  } catch {
    if (number === asked) tell("The search did not answer. Check the connection and type again.");
  } finally {
    clearTimeout(slow);
  }
}

input.addEventListener("input", () => {
  clearTimeout(timer);
  asked += 1; // an answer to what stood here before comes too late
  mark(-1); // Enter must not pick of a list that is about to change
  timer = setTimeout(search, 120);
});
input.addEventListener("focus", () => {
  if (options.hidden) search();
});
input.addEventListener("blur", () => {
  asked += 1;
  close();
});
input.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (options.hidden) search();
    else if (found.length) {
      const step = event.key === "ArrowDown" ? 1 : -1;
      mark((active + step + found.length) % found.length);
    }
  } else if (event.key === "Enter") {
    event.preventDefault();
    if (active >= 0) choose(active);
    else if (input.value.trim()) {
      clearTimeout(timer);
      search();
    }
    else if (picked().length) {
      close();
      trigger("submit");
    }
  } else if (event.key === "Escape") {
    asked += 1;
    close();
  } else if (event.key === "Backspace" && input.value === "" && picked().length) {
    const last = picked()[picked().length - 1];
    set(picked().slice(0, -1), "Removed " + last.title);
  }
});
clear.addEventListener("click", () => {
  set([], "The history is empty");
  input.focus();
});
watch("value", draw);
draw();
drawExamples();
