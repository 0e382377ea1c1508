// scalameta's definitions of Scala files: node scala.js SCALAMETA_PARSERS_FOLDER < {root, paths}
'use strict';
const { parseSource } = require(process.argv[2]);
const { run } = require('./common.js');

const KINDS = new Set([
  'Defn.Class',
  'Defn.Def',
  'Decl.Def',
  'Defn.Enum',
  'Defn.Macro',
  'Defn.Object',
  'Defn.Trait',
  'Defn.Type',
  'Ctor.Secondary',
  'Pkg.Object',
]);

function parse(text) {
  const second = parseSource(text);
  const tree = second.error ? parseSource(text, { dialect: 'Scala3' }) : second;
  if (tree.error) throw new Error(second.error);
  return tree;
}

run((text) => {
  const found = [];

  function visit(node) {
    if (Array.isArray(node)) {
      node.forEach(visit);
      return;
    }
    if (!node || typeof node !== 'object') return;
    if (KINDS.has(node.type)) {
      const { start, end } = node.pos;
      const name = node.type === 'Ctor.Secondary' ? 'this' : node.name.value;
      found.push({ kind: node.type, names: [name], start, end });
    } else if (node.type === 'Defn.Val' && node.rhs.type === 'Term.Function') {
      const { start, end } = node.pos;
      const [pattern] = node.pats;
      if (node.pats.length === 1 && pattern.type === 'Pat.Var') {
        found.push({ kind: 'bound function', names: [pattern.name.value], start, end });
      }
    }
    for (const key of Object.keys(node)) if (key !== 'pos') visit(node[key]);
  }

  visit(parse(text));
  return found;
});
