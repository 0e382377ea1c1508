// The functions that mvdan/sh finds in Bash files: node bash.js MVDAN_SH_FOLDER < {root, paths}
'use strict';
const { syntax } = require(process.argv[2]);
const { run } = require('./common.js');

run((text, path) => {
  const bytes = Buffer.from(text);
  const found = [];
  const at = (position) => bytes.subarray(0, position.Offset()).toString().length;
  const file = syntax.NewParser().Parse(text, path);
  syntax.Walk(file, (node) => {
    if (node && syntax.NodeType(node) === 'FuncDecl') {
      const [start, end] = [at(node.Pos()), at(node.End())];
      found.push({ kind: 'function', names: [node.Name.Value], start, end });
    }
    return true;
  });
  return found;
});
