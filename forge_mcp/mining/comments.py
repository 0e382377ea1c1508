"""Comments → docstrings: marks taken off, licence headers and commented-out code told apart."""

from __future__ import annotations

import re

LICENSE_HEADER = re.compile(
    r"SPDX-License-Identifier|\bcopyright\b.{0,80}\b(?:19|20)\d\d|\(c\)\s*(?:19|20)\d\d"
    r"|all rights reserved|licen[sc]ed under|permission is hereby granted"
    r"|redistribution and use in source",
    re.IGNORECASE,
)
LINE_MARK = re.compile(r"\s*(?:///?!?(?:<(?=\s|$))?|#+!?|--+|;+)(?:[ \t]?)(.*)")
FRAME = re.compile(r"[ \t]*\*(?!/)[ \t]?")
CODE_LINE = re.compile(
    r".*[;{}]\s*$"
    r"|\s*(?:return|import|from|def|func|fn|var|let|const|class|if|for|while|end|else)\b"
    r".*[(){}=:]\s*(?:\w+\s*)?$"
    r"|\s*[\w.\[\]]+\s*(?:=|[+\-*/]=|:=|<-)\s*\S.*"
    r"|\s*[\w.]+\([^)]*\)\s*$"
)
MARKUP = re.compile(
    r"</?(?:summary|remarks|para|returns|value|example|code|c|list|item|inheritdoc)\b[^<>]*>"
)
PARAMETER = re.compile(r"<(param|typeparam|exception)\s+(?:name|cref)=\"([^\"]*)\"\s*/?>")
REFERENCE = re.compile(r"<(?:see|seealso|paramref|typeparamref)\s+\w+=\"([^\"]*)\"\s*/?>")


def clean_comments(comments: str) -> str:
    """Text of one block comment, or of line comments, without marks and frame."""
    comments = comments.replace("\r\n", "\n").strip()
    if comments.startswith("/*"):
        return clean_block_comment(comments)
    lines = []
    for line in comments.split("\n"):
        match = LINE_MARK.match(line)
        lines.append((match[1] if match else line).rstrip())
    return _without_markup("\n".join(lines)).strip("\n").strip()


def clean_block_comment(comment: str) -> str:
    """Text of a JSDoc, Javadoc or Doxygen comment without its frame of asterisks."""
    inner = comment.replace("\r\n", "\n").removeprefix("/*").removesuffix("*/")
    inner = re.sub(r"(?:^|(?<=\s))\*+$", "", re.sub(r"^[*!]+(?:<(?=\s))?", "", inner))
    lines = inner.split("\n")
    framed = all(FRAME.match(line) for line in lines[1:] if line.strip())
    if framed:
        lines = [lines[0], *(FRAME.sub("", line, count=1) for line in lines[1:])]
    else:  # no asterisks: the indentation that all lines share is the frame
        margins = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
        margin = min(margins, default=0)
        lines = [lines[0], *(line[margin:] for line in lines[1:])]
    lines[0] = lines[0].strip()
    return _without_markup("\n".join(line.rstrip() for line in lines)).strip("\n").strip()


def _without_markup(text: str) -> str:
    """C#'s XML documentation as plain text; anything else is left as it is."""
    if "<summary>" not in text and "<param " not in text and "<inheritdoc" not in text:
        return text
    text = PARAMETER.sub(r"\1 \2: ", text)
    text = REFERENCE.sub(r"\1", text)
    text = MARKUP.sub("", re.sub(r"</(?:param|typeparam|exception)>", "", text))
    lines = [line.strip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def is_license_header(comment: str) -> bool:
    """Whether a comment states a licence or a copyright instead of documenting what follows."""
    return bool(LICENSE_HEADER.search(comment))


def looks_like_code(comment: str) -> bool:
    """Whether a comment is code that was switched off: most of its lines read as statements."""
    lines = [line for line in clean_comments(comment).split("\n") if line.strip()]
    return bool(lines) and sum(bool(CODE_LINE.fullmatch(line)) for line in lines) * 2 > len(lines)
