// The TypeScript compiler's definitions: node typescript.js TYPESCRIPT_FOLDER < {root, paths}
'use strict';
const ts = require(process.argv[2]);
const { run } = require('./common.js');

const { SyntaxKind: K } = ts;
const PLAIN = new Map([
  [K.FunctionDeclaration, 'function'],
  [K.ClassDeclaration, 'class'],
  [K.InterfaceDeclaration, 'interface'],
  [K.EnumDeclaration, 'enum'],
  [K.TypeAliasDeclaration, 'type alias'],
  [K.MethodDeclaration, 'method'],
  [K.GetAccessor, 'getter'],
  [K.SetAccessor, 'setter'],
  [K.Constructor, 'constructor'],
]);
const SIGNED = new Set([K.FunctionDeclaration, K.MethodDeclaration, K.Constructor]);

const WRAPPERS = new Set([
  K.ParenthesizedExpression,
  K.AsExpression,
  K.SatisfiesExpression,
  K.TypeAssertionExpression,
  K.NonNullExpression,
]);

// What stands in parentheses or is asserted to have a type is bound as well.
function unwrapped(node) {
  return node && WRAPPERS.has(node.kind) ? unwrapped(node.expression) : node;
}

function isValue(node) {
  return Boolean(
    node && (ts.isArrowFunction(node) || ts.isFunctionExpression(node) || ts.isClassExpression(node)),
  );
}

function dotted(node) {
  if (ts.isIdentifier(node)) return [node.text];
  if (node.kind === K.ThisKeyword) return ['this'];
  if (!ts.isPropertyAccessExpression(node) || node.questionDotToken) return null;
  const before = dotted(node.expression);
  return before && [...before, node.name.text];
}

function kindOf(node) {
  const kind = PLAIN.get(node.kind);
  if (!SIGNED.has(node.kind) || node.body) return kind;
  const modifiers = new Set((node.modifiers || []).map((modifier) => modifier.kind));
  if (modifiers.has(K.AbstractKeyword)) return `abstract ${kind}`;
  if (node.flags & ts.NodeFlags.Ambient || modifiers.has(K.DeclareKeyword)) return `declared ${kind}`;
  return `${kind} overload signature`;
}

run((text, path) => {
  const file = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  if (file.parseDiagnostics.length) throw new Error(file.parseDiagnostics[0].messageText);
  const found = [];
  const claimed = new Set();

  function add(kind, names, node, value) {
    if (value) claimed.add(value);
    found.push({ kind, names, start: node.getStart(file), end: node.end });
  }

  function own(value) {
    return value.name ? [value.name.text] : [];
  }

  function visit(node) {
    if (PLAIN.has(node.kind)) {
      const unnamed = node.kind === K.Constructor ? 'constructor' : 'default';
      add(kindOf(node), [node.name ? node.name.getText(file) : unnamed], node);
    } else if (ts.isVariableDeclaration(node) && ts.isIdentifier(node.name)) {
      const value = unwrapped(node.initializer);
      if (isValue(value)) add('bound variable', [node.name.text], node, value);
    } else if (ts.isPropertyDeclaration(node) || ts.isPropertyAssignment(node)) {
      const value = unwrapped(node.initializer);
      const plain = !ts.isComputedPropertyName(node.name) || ts.isPropertyDeclaration(node);
      if (isValue(value) && plain) add('bound property', [node.name.getText(file)], node, value);
    } else if (ts.isBinaryExpression(node) && node.operatorToken.kind === K.EqualsToken) {
      const value = unwrapped(node.right);
      const target = isValue(value) && dotted(node.left);
      if (target) {
        const last = target[target.length - 1];
        add('assignment', last === 'exports' ? [...own(value), last] : [last], node, value);
      }
    } else if (ts.isExportAssignment(node) && isValue(unwrapped(node.expression))) {
      const value = unwrapped(node.expression);
      add('export default', [...own(value), 'default'], node, value);
    } else if (isValue(node) && node.name && !claimed.has(node)) {
      add('named expression', [node.name.text], node);
    }
    ts.forEachChild(node, visit);
  }

  visit(file);
  return found;
});
