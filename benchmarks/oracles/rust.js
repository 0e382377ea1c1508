// syn's definitions of Rust files: node rust.js ASTEXPLORER_SYN_FOLDER < {root, paths}
'use strict';
const fs = require('fs');
const path = require('path');
const { run } = require('./common.js');

// kind → where the name stands in the node.
const KINDS = {
  ItemFn: (node) => node.sig.ident,
  ImplItemFn: (node) => node.sig.ident,
  TraitItemFn: (node) => node.sig.ident,
  ForeignItemFn: (node) => node.sig.ident,
  ItemStruct: (node) => node.ident,
  ItemEnum: (node) => node.ident,
  ItemUnion: (node) => node.ident,
  ItemTrait: (node) => node.ident,
  ItemType: (node) => node.ident,
  ImplItemType: (node) => node.ident,
  TraitItemType: (node) => node.ident,
  ItemMacro: (node) => node.ident, // of macro_rules!; a macro that is called has none
};

async function main() {
  const folder = process.argv[2];
  // The package is an ES module whose package.json does not say so.
  const source = fs.readFileSync(path.join(folder, 'astexplorer_syn.js'), 'utf8');
  const syn = await import(`data:text/javascript,${encodeURIComponent(source)}`);
  syn.initSync(fs.readFileSync(path.join(folder, 'astexplorer_syn_bg.wasm')));

  run((text) => {
    const found = [];
    const lines = text.split('\n');
    const starts = [0];
    for (const line of lines) starts.push(starts[starts.length - 1] + line.length + 1);
    // syn counts columns in code points.
    const at = ({ line, column }) =>
      starts[line - 1] + [...lines[line - 1]].slice(0, column).join('').length;

    function visit(node) {
      if (Array.isArray(node)) {
        node.forEach(visit);
        return;
      }
      if (!node || typeof node !== 'object') return;
      const ident = KINDS[node._type] && KINDS[node._type](node);
      if (ident) {
        const name = ident.to_string;
        const [start, end] = [at(node.span.start), at(node.span.end)];
        found.push({ kind: node._type, names: [name], start, end });
      }
      for (const key of Object.keys(node)) if (key !== 'span') visit(node[key]);
    }

    visit(syn.parseFile(text));
    return found;
  });
}

main();
