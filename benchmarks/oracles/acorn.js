// acorn's definitions of JavaScript files: node acorn.js ACORN_FOLDER < {root, paths}
'use strict';
const acorn = require(process.argv[2]);
const { run } = require('./common.js');

const FUNCTIONS = new Set(['FunctionExpression', 'ArrowFunctionExpression']);

function isValue(node) {
  return node != null && (FUNCTIONS.has(node.type) || node.type === 'ClassExpression');
}

// The names of a plain dotted target, innermost last; null for any other.
function dotted(node) {
  if (node.type === 'Identifier') return [node.name];
  if (node.type === 'ThisExpression') return ['this'];
  if (node.type !== 'MemberExpression' || node.computed || node.optional) return null;
  const before = dotted(node.object);
  const own = node.property.type === 'PrivateIdentifier' ? '#' : '';
  return before && [...before, own + node.property.name];
}

function parse(text) {
  const options = { ecmaVersion: 'latest', allowHashBang: true, allowReturnOutsideFunction: true };
  try {
    return acorn.parse(text, { ...options, sourceType: 'module' });
  } catch {
    return acorn.parse(text, { ...options, sourceType: 'script' });
  }
}

run((text) => {
  const found = [];
  const claimed = new Set();

  function add(kind, names, node, value) {
    if (value) claimed.add(value);
    found.push({ kind, names, start: node.start, end: node.end });
  }

  function key(node) {
    const source = text.slice(node.key.start, node.key.end);
    return node.computed ? `[${source}]` : source;
  }

  function own(value) {
    return value.id ? [value.id.name] : [];
  }

  function visit(node) {
    if (node.type === 'FunctionDeclaration' || node.type === 'ClassDeclaration') {
      add(node.type, node.id ? [node.id.name] : ['default'], node);
    } else if (node.type === 'ExportDefaultDeclaration' && isValue(node.declaration)) {
      const value = node.declaration;
      add('export default', [...own(value), 'default'], node, value);
    } else if (node.type === 'MethodDefinition') {
      add(node.type, [key(node)], node, node.value);
    } else if (node.type === 'PropertyDefinition' && isValue(node.value)) {
      add(node.type, [key(node)], node, node.value);
    } else if (node.type === 'Property' && isValue(node.value)) {
      const method = node.method || node.kind !== 'init';
      if (method) add('Property (method)', [key(node)], node, node.value);
      else if (!node.computed) add('Property', [key(node)], node, node.value);
    } else if (node.type === 'VariableDeclarator' && isValue(node.init)) {
      if (node.id.type === 'Identifier') add(node.type, [node.id.name], node, node.init);
    } else if (node.type === 'AssignmentExpression' && node.operator === '=') {
      const target = isValue(node.right) && dotted(node.left);
      if (target) {
        const last = target[target.length - 1];
        const names = last === 'exports' ? [...own(node.right), last] : [last];
        add(node.type, names, node, node.right);
      }
    } else if (isValue(node) && node.id && !claimed.has(node)) {
      add(`${node.type} (named)`, [node.id.name], node);
    }
    for (const name of Object.keys(node)) {
      const child = node[name];
      const children = Array.isArray(child) ? child : [child];
      for (const each of children) {
        if (each && typeof each.type === 'string') visit(each);
      }
    }
  }

  visit(parse(text));
  return found;
});
