// The form for prompts: parts of a text are shown as they are written.
const OPTIONS = [
  ["max_tokens", "tokens", { min: 1, step: 1, value: 100 }],
  ["temperature", "temperature", { min: 0, step: "any", value: 0.8 }],
  ["top_p", "top-p", { min: 0.01, max: 1, step: "any", value: 1 }],
  ["seed", "seed", { min: 0, step: 1, placeholder: "any" }],
];

/** The fields of the form; `make` creates elements. */
export function promptFields(make) {
  const area = make("textarea", { required: true, id: "prompt", placeholder: "a prompt" });
  const numbers = OPTIONS.map(([name, text, properties]) => {
    const input = make("input", { type: "number", name, ...properties });
    return make("label", {}, `${text} `, input);
  });
  return make("div", {}, area, make("div", { className: "row" }, ...numbers));
}

/** What the form says, as a request. */
export function readPrompt(fields) {
  const parameters = {};
  for (const input of fields.querySelectorAll("input")) {
    if (input.value !== "") parameters[input.name] = Number(input.value);
  }
  return { text_input: fields.querySelector("textarea").value, parameters };
}

/** The events of an answer, as they come. */
export async function* readEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = JSON.parse(part.replace(/^data: /, ""));
      if (event.error) throw new Error(event.error);
      yield event;
    }
  }
}
