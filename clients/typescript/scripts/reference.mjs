// Writes docs/reference/typescript-client.md from the types, with TypeScript's own compiler.
//
//     node scripts/reference.mjs           write it
//     node scripts/reference.mjs --check   only see whether it is up to date

import { readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
const PAGE = join(ROOT, "../../docs/reference/typescript-client.md");

const program = ts.createProgram([join(ROOT, "src/index.ts")], {
  ...ts.readConfigFile(join(ROOT, "tsconfig.json"), ts.sys.readFile).config.compilerOptions,
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  lib: ["lib.es2023.d.ts", "lib.dom.d.ts"],
});
const checker = program.getTypeChecker();
const index = checker.getSymbolAtLocation(program.getSourceFile(join(ROOT, "src/index.ts")));
const exported = new Map(
  checker.getExportsOfModule(index).map((symbol) => {
    const found = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
    return [symbol.name, found.declarations[0]];
  }),
);

// In the order in which one meets them; what is missing here comes last.
const ORDER = ["connect", "ClientOptions", "Token", "Client", "Subscription", "SubscribeOptions", "MessagesOptions"];
ORDER.push("Message", "Gap", "TopicDeleted", "State", "StateEvent", "ClientEvents", "PublishOptions", "Receipt");
ORDER.push("HistoryOptions", "HistoryPage", "Topics", "Topic", "Retention", "TopicSettings", "TopicPage");
ORDER.push("ReplBrokerError", "ProblemError", "ConnectionError");
const names = [...ORDER, ...[...exported.keys()].filter((name) => !ORDER.includes(name)).sort()];

const source = (node) => node.getText().replace(/\/\*\*[^]*?\*\/\s*/g, "").replace(/^export /, "").replace(/^ {2}/gm, "");

/** What the comment before a declaration says, with its tags as a list. */
function about(node) {
  const comments = ts.getJSDocCommentsAndTags(node).filter(ts.isJSDoc);
  const text = comments.map(({ comment }) => plain(comment)).join("\n\n");
  const tags = comments.flatMap(({ tags = [] }) => [...tags]).filter(({ tagName }) => tagName.text !== "packageDocumentation");
  const list = tags.map((tag) => {
    const name = ts.isJSDocParameterTag(tag) ? `\`${tag.name.getText()}\`: ` : `${tag.tagName.text}: `;
    return `- ${name}${plain(tag.comment).replace(/\s*\n\s*/g, " ")}`;
  });
  return [text, list.join("\n")].filter(Boolean).join("\n\n");
}

function plain(comment) {
  const parts = typeof comment === "string" ? [comment] : (comment ?? []).map((part) => (part.name ? link(part.name.getText()) : part.text));
  return parts.join("").replace(/^ {5}(.*)(\n {5}.*|\n(?=\n? {5}))*/gm, (block) => `\`\`\`text\n${block.replace(/^ {5}/gm, "")}\n\`\`\``);
}

const link = (name) => `[\`${name}\`](#${name.toLowerCase()})`;

/** A type in a table, with links to what is described on this page. */
const typeText = (text) => `\`${text.replace(/\s+/g, " ").replaceAll("|", "\\|")}\``;

const cell = (text) => text.replace(/\s*\n\s*/g, " ").replaceAll("|", "\\|");

function signature(text) {
  return `\`\`\`ts\n${text.trim()}\n\`\`\``;
}

function section(name) {
  const node = exported.get(name);
  const parts = [`## ${name}`, about(ts.isVariableDeclaration(node) ? node.parent.parent : node)];
  if (ts.isFunctionDeclaration(node)) {
    const parameters = node.parameters.map(({ type }) => `options: ${type.getText()}`).join(", ");
    parts.push(signature(`function ${name}(${parameters}): ${node.type.getText()}`));
  } else if (ts.isTypeAliasDeclaration(node)) {
    parts.push(signature(source(node)));
  } else if (ts.isClassDeclaration(node)) {
    const base = node.heritageClauses?.[0]?.getText() ?? "";
    parts.push(signature(`class ${name} ${base}`));
    const own = node.members.find(ts.isConstructorDeclaration)?.parameters.filter(({ modifiers }) => modifiers) ?? [];
    parts.push(table(own));
  } else if (node.members.some(ts.isMethodSignature)) {
    for (const member of node.members) parts.push(`### ${name}.${member.name.getText()}`, about(member), signature(source(member)));
  } else {
    parts.push(table(node.members));
  }
  return parts.filter(Boolean).join("\n\n");
}

function table(members) {
  if (!members.length) return "";
  const rows = members.map((member) => {
    const type = member.type?.getText() ?? checker.typeToString(checker.getTypeAtLocation(member));
    const isOptional = member.questionToken ? " Optional." : "";
    const known = /^(\w+)$/.test(type) && exported.has(type) ? link(type) : typeText(type.replace(/ \| undefined$/, ""));
    return `| \`${member.name.getText().replaceAll('"', "")}\` | ${known} | ${cell(about(member))}${isOptional} |`;
  });
  return ["| member | type | meaning |", "| --- | --- | --- |", ...rows].join("\n");
}

const text = `# TypeScript client

The npm package \`repl-broker\`, which every node serves as \`/client.js\` too. Made from its types;
[how to use it](../how-to/use-the-typescript-client.md) is another page.

${names.map((name) => `- ${link(name)}`).join("\n")}

${names.map(section).join("\n\n")}
`;

if (!process.argv.includes("--check")) await writeFile(PAGE, text);
else if ((await readFile(PAGE, "utf8").catch(() => "")) !== text) throw new Error(`${PAGE} is not what the types say: npm run docs`);
