// Shows openapi.json: routes, parameters, bodies, answers.

const made = (tag, text, ...children) => {
  const element = document.createElement(tag);
  element.textContent = text ?? "";
  element.append(...children);
  return element;
};

const list = (title, lines) => (lines.length ? [made("h3", title), made("ul", "", ...lines.map((l) => made("li", l)))] : []);

const kindOf = (schema) => schema.type ?? (schema.anyOf ?? []).map((one) => one.type).join(" or ") ?? "";

function bodyLines(operation) {
  return Object.entries(operation.requestBody?.content ?? {}).flatMap(([kind, { schema }]) => [
    kind,
    ...Object.entries(schema.properties ?? {}).map(([name, one]) => {
      const needed = schema.required?.includes(name) ? ", required" : "";
      return `— ${name} (${kindOf(one)}${needed}) ${one.description ?? ""}`;
    }),
  ]);
}

function card(path, method, operation) {
  const parameters = (operation.parameters ?? []).map(
    (one) => `${one.name} (${one.in}${one.required ? ", required" : ""}) ${one.description ?? one.schema.description ?? ""}`,
  );
  const answers = Object.entries(operation.responses).map(([status, one]) => `${status} ${one.description}`);
  const section = made(
    "section", "", made("h2", `${method.toUpperCase()} ${path}`), made("p", operation.description ?? ""),
    ...list("Parameters", parameters), ...list("Body", bodyLines(operation)), ...list("Answers", answers),
  );
  section.className = "card";
  return section;
}

const document_ = await (await fetch("openapi.json")).json();
document.getElementById("routes").replaceChildren(
  made("p", `${document_.info.title} ${document_.info.version}. ${document_.info.description}`),
  ...Object.entries(document_.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => card(path, method, operation))),
);
