/** The settings of the next answers, kept for as long as the tab is open. */

const KEPT = "sol_rt.settings";

/** Settings of the form by name; those that are empty are left out. */
export function readSettings(form) {
  const given = [...new FormData(form)].map(([name, value]) => [name, value.trim()]);
  return Object.fromEntries(given.filter(([, value]) => value !== ""));
}

/** Fills the form with what was kept. */
export function restore(form) {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
  for (const [name, value] of Object.entries(kept)) if (form.elements[name]) form.elements[name].value = value;
}

/** Keeps the settings of the form. Throws an Error in words for JSON that is none. */
export function keep(form) {
  const settings = readSettings(form);
  fieldsOf(settings);
  sessionStorage.setItem(KEPT, JSON.stringify(settings));
}

/** Fields of a request for these settings, messages excepted. Throws an Error in words for JSON that is none. */
export function fieldsOf(settings) {
  const fields = {};
  for (const name of ["temperature", "max_tokens", "seed"]) if (settings[name]) fields[name] = Number(settings[name]);
  if (settings.schema) {
    const schema = parsed("JSON schema", settings.schema);
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  if (settings.tools) fields.tools = parsed("Tools", settings.tools);
  return fields;
}

function parsed(name, text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: no JSON (${error.message})`);
  }
}
