// php-parser's definitions of PHP files: node php.js PHP_PARSER_FOLDER < {root, paths}
'use strict';
const PhpParser = require(process.argv[2]);
const { run } = require('./common.js');

const KINDS = new Set(['function', 'method', 'class', 'interface', 'trait', 'enum']);
const CLOSURES = new Set(['closure', 'arrowfunc']);

const engine = new PhpParser({
  parser: { extractDoc: false, suppressErrors: false, version: '8.4' },
  ast: { withPositions: true },
});

run((text, path) => {
  const found = [];

  function add(kind, name, { loc }) {
    found.push({ kind, names: [name], start: loc.start.offset, end: loc.end.offset });
  }

  function visit(node) {
    if (Array.isArray(node)) {
      node.forEach(visit);
      return;
    }
    if (!node || typeof node !== 'object') return;
    if (KINDS.has(node.kind) && node.name) {
      const name = typeof node.name === 'string' ? node.name : node.name.name;
      add(node.kind, name, node);
    } else if (node.kind === 'assign' && node.operator === '=' && CLOSURES.has(node.right.kind)) {
      const { left } = node;
      if (left.kind === 'variable' && typeof left.name === 'string') {
        add('bound closure', `$${left.name}`, node);
      }
    }
    for (const key of Object.keys(node)) if (key !== 'loc') visit(node[key]);
  }

  visit(engine.parseCode(text, path));
  return found;
});
