/** Copies of the golden bundle with other files, for tests. */
import { createHash } from "node:crypto";
import { cp, mkdtemp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const tiny = fileURLToPath(new URL("../../../runtime_tests/golden/tiny", import.meta.url));

/**
 * A copy with other content in some files, or with further files, whose hashes are in its config.
 * @param {string} folder where to make it
 * @param {Record<string, string | Uint8Array>} files
 */
export async function changedBundle(folder, files) {
  const copy = await mkdtemp(join(folder, "copy-"));
  await cp(tiny, copy, { recursive: true });
  const config = JSON.parse(await readFile(join(copy, "sol_config.json"), "utf8"));
  for (const [name, given] of Object.entries(files)) {
    const content = Buffer.from(given);
    config.files[name] = { bytes: content.length, sha256: createHash("sha256").update(content).digest("hex") };
    await writeFile(join(copy, name), content);
  }
  await writeFile(join(copy, "sol_config.json"), JSON.stringify(config));
  return copy;
}
