// Facts of JavaScript and TypeScript, read by the TypeScript compiler for tests/dataset_checker.py:
// node dataset_facts.js TYPESCRIPT_FOLDER < {root, paths}; one line of JSON a file.
'use strict';
const fs = require('fs');
const path = require('path');
const ts = require(path.resolve(process.argv[2]));

const { SyntaxKind: K } = ts;
const unique = (list) => [...new Set(list)];

function read(text, name) {
  const scriptKind = /\.[cm]?jsx?$/.test(name) ? ts.ScriptKind.JSX : undefined;
  const file = ts.createSourceFile(name, text, ts.ScriptTarget.Latest, true, scriptKind);
  if (file.parseDiagnostics.length) return [];
  const lineOf = (at) => file.getLineAndCharacterOfPosition(at).line + 1;
  const textOf = (node) => (node ? node.getText(file) : '');
  const found = [];

  const isFunction = (node) => ts.isFunctionLike(node) && !ts.isTypeNode(node);
  const isScope = (node) => isFunction(node) || ts.isClassLike(node);

  function walk(node, nested, visit) {
    visit(node);
    ts.forEachChild(node, (child) => {
      if (nested || !isScope(child)) walk(child, nested, visit);
      else visit(child);
    });
  }

  function bounds(roots, collect) {
    const lists = { own: [], may: [] };
    for (const root of roots.filter(Boolean)) {
      walk(root, false, (node) => lists.own.push(...collect(node, true)));
      walk(root, true, (node) => lists.may.push(...collect(node, false)));
    }
    return lists;
  }

  function callee(node) {
    if (ts.isCallExpression(node) || ts.isNewExpression(node)) return textOf(node.expression);
    if (ts.isTaggedTemplateExpression(node)) return textOf(node.tag);
    return null;
  }

  // What everybody would call a call: a plain chain of names.
  const plain = (callee) => /^[\w$.#]+$/.test(callee) && callee !== 'super';

  const calls = (node, own) => {
    const name = callee(node);
    if (name === null) return [];
    if (!own) return [name, `new ${name}`];
    return ts.isCallExpression(node) && plain(name) ? [name] : [];
  };

  const thrown = (node, own) => {
    if (!ts.isThrowStatement(node)) return [];
    const value = node.expression;
    if (ts.isNewExpression(value)) return [textOf(value.expression)];
    if (own) return [];
    return [textOf(value), ts.isCallExpression(value) ? textOf(value.expression) : ''];
  };

  const returned = (node) =>
    ts.isReturnStatement(node) && node.expression ? [textOf(node.expression)] : [];

  function statements(node) {
    return node && ts.isBlock(node) ? node.statements : node ? [node] : [];
  }

  function guards(roots) {
    const conditions = [];
    const returnsWhen = [];
    for (const root of roots.filter(Boolean)) {
      walk(root, false, (node) => {
        if (!ts.isIfStatement(node)) return;
        const test = textOf(node.expression);
        for (const child of statements(node.thenStatement)) {
          for (const name of thrown(child, false)) conditions.push([name, test]);
          if (ts.isReturnStatement(child)) returnsWhen.push([test, textOf(child.expression)]);
        }
      });
    }
    return { conditions, returns_when: returnsWhen };
  }

  function comment(node) {
    const ranges = ts.getLeadingCommentRanges(text, node.getFullStart()) || [];
    const texts = ranges.map((range) => text.slice(range.pos, range.end));
    const documented = texts.filter((one) => one.startsWith('/**'));
    return documented.length ? documented.pop() : texts.join('\n');
  }

  // The outermost node that stands for a definition: its statement, with `export` and `const`.
  function whole(node) {
    let outer = node;
    for (;;) {
      const up = outer.parent;
      if (!up) return outer;
      const wraps =
        (ts.isVariableDeclaration(up) && up.initializer === outer) ||
        (ts.isVariableDeclarationList(up) && up.declarations.length === 1) ||
        ts.isVariableStatement(up) ||
        ts.isExpressionStatement(up) ||
        ts.isExportAssignment(up) ||
        ts.isParenthesizedExpression(up) ||
        ts.isAsExpression(up) ||
        ts.isSatisfiesExpression(up) ||
        (ts.isPropertyAssignment(up) && up.initializer === outer) ||
        (ts.isPropertyDeclaration(up) && up.initializer === outer) ||
        (ts.isBinaryExpression(up) && up.right === outer && up.operatorToken.kind === K.EqualsToken);
      if (!wraps) return outer;
      outer = up;
    }
  }

  function names(node) {
    const list = node.name ? [textOf(node.name)] : [];
    if (ts.isConstructorDeclaration(node)) list.push('constructor');
    for (let up = node.parent; up; up = up.parent) {
      if (ts.isBinaryExpression(up)) list.push(textOf(up.left), textOf(up.left).split('.').pop());
      else if (up.name && !isScope(up)) list.push(textOf(up.name));
      else if (ts.isExportAssignment(up)) list.push('default');
      else if (!ts.isParenthesizedExpression(up) && !ts.isAsExpression(up)) break;
      if (ts.isStatement(up)) break;
    }
    if (!list.length) list.push('default');
    return unique(list.map((one) => one.replace(/^['"#\[]+|['"\]]+$/g, '')).concat(list));
  }

  function add(node, kind, details) {
    const outer = whole(node);
    const decorators = (ts.canHaveDecorators(node) && ts.getDecorators(node)) || [];
    const base = {
      kind,
      decorators: decorators.map((one) => textOf(one.expression)),
      docstring: comment(outer) || comment(node),
      call_texts: bounds([node], (one) =>
        callee(one) === null ? [] : [[callee(one), textOf(one)]],
      ).may,
      ...details,
    };
    // Two spans: the whole statement, and the bare expression; a miner may take either.
    for (const name of names(node)) {
      found.push({ ...base, name, start: lineOf(outer.getStart(file)), end: lineOf(outer.end - 1) });
      found.push({ ...base, name, start: lineOf(node.getStart(file)), end: lineOf(node.end - 1) });
    }
  }

  function addFunction(node) {
    const roots = node.body ? [node.body] : [];
    const outer = whole(node);
    const arrow = ts.isArrowFunction(node) && node.body && !ts.isBlock(node.body);
    const returns = bounds(roots, returned);
    if (arrow) {
      returns.may.push(textOf(node.body));
      if (!ts.isParenthesizedExpression(node.body)) returns.own.push(textOf(node.body));
    }
    add(node, 'function', {
      header: text.slice(outer.getStart(file), node.body ? node.body.getStart(file) : outer.end),
      parameters: node.parameters.map((one) => [
        textOf(one.name),
        textOf(one.type),
        textOf(one.initializer),
      ]),
      result: textOf(node.type),
      raises: bounds(roots, thrown),
      returns,
      calls: bounds(roots, calls),
      ...guards(roots),
    });
  }

  function addClass(node) {
    const bases = { own: [], may: [] };
    for (const clause of node.heritageClauses || []) {
      for (const type of clause.types) {
        const forms = [textOf(type), textOf(type.expression)];
        bases.may.push(...forms);
        if (clause.token === K.ExtendsKeyword) bases.own.push(forms[1]);
      }
    }
    const methods = { own: [], may: [] };
    for (const member of node.members || []) {
      const name = member.name ? textOf(member.name).replace(/^['"#]|['"]$/g, '') : 'constructor';
      methods.may.push(name, textOf(member.name));
      if (ts.isMethodDeclaration(member) && member.body) methods.own.push(name);
    }
    const body = text.indexOf('{', node.heritageClauses ? node.heritageClauses.end : node.name ? node.name.end : node.getStart(file));
    add(node, 'class', {
      header: text.slice(whole(node).getStart(file), body < 0 ? node.end : body),
      bases,
      methods,
      calls: bounds([...(node.members || [])], calls),
    });
  }

  function visit(node) {
    if (isFunction(node)) addFunction(node);
    else if (ts.isClassLike(node) || ts.isInterfaceDeclaration(node)) addClass(node);
    else if (ts.isEnumDeclaration(node) || ts.isTypeAliasDeclaration(node)) {
      add(node, 'class', { header: text.slice(node.getStart(file), node.end) });
    } else if (ts.isObjectLiteralExpression(node) || ts.isModuleDeclaration(node)) {
      const kind = 'class';
      const methods = (node.properties || []).filter((one) => ts.isMethodDeclaration(one));
      const own = methods.map((one) => textOf(one.name));
      if (node.parent && names(node)[0] !== 'default') add(node, kind, { methods: { own: [], may: own } });
    }
    ts.forEachChild(node, visit);
  }
  visit(file);

  const modules = [];
  const constants = [];
  walk(file, true, (node) => {
    if ((ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) && node.moduleSpecifier) {
      modules.push([node.moduleSpecifier.text, ts.isImportDeclaration(node)]);
    } else if (ts.isExternalModuleReference(node)) modules.push([node.expression.text, true]);
    else if (ts.isCallExpression(node) && /^(require|import)$/.test(textOf(node.expression))) {
      if (node.arguments.length && ts.isStringLiteralLike(node.arguments[0])) {
        modules.push([node.arguments[0].text, false]);
      }
    }
    if (ts.isVariableDeclaration(node) && node.initializer) {
      constants.push([textOf(node.name), textOf(node.initializer)]);
    } else if (ts.isBinaryExpression(node) && node.operatorToken.kind === K.EqualsToken) {
      constants.push([textOf(node.left), textOf(node.right)]);
    }
  });
  found.push({
    kind: 'module',
    name: '',
    start: 1,
    end: lineOf(file.end),
    docstring: (/^(?:#!.*\n)?\s*((?:\/\*[\s\S]*?\*\/\s*|\/\/.*\n\s*)*)/.exec(text) || ['', ''])[1],
    imports: { own: modules.filter((one) => one[1]).map((one) => one[0]), may: modules.map((one) => one[0]) },
    constants,
    calls: bounds([file], calls),
    call_texts: bounds([file], (one) => (callee(one) === null ? [] : [[callee(one), textOf(one)]])).may,
  });
  return found;
}

const { root, paths } = JSON.parse(fs.readFileSync(0, 'utf8'));
for (const name of paths) {
  const text = fs.readFileSync(path.join(root, name), 'utf8').replace(/^\ufeff/, '').replace(/\r\n?/g, '\n');
  process.stdout.write(`${JSON.stringify({ path: name, definitions: read(text, name) })}\n`);
}
