"""Tokenise pairs, each prompt together with its answers, and refuse pairs that cannot be scored.

Prompt and answer are tokenised as one text, because a tokenizer may merge tokens across their boundary. The context is what all
continuations share; everything after the context is scored. If some continuations leave the prompt's own tokens as they are and
others merge with them (13|53 but 1300), all are made to follow the prompt's own tokens, so that they compete at the same position.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os.path import commonprefix
from typing import Any, NamedTuple

from bigcircuit.data.collate import count_rows
from bigcircuit.data.pair import Example, Pair, Text, TokenIds
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors

_MOST_ROWS = 256
"""Rows of one pair, which all go through the model at once, whatever `train.micro_batch_size` is."""


class _Tokens(NamedTuple):
    """Token ids of texts."""

    joined: dict[str, TokenIds]
    """Of every prompt, and of every prompt with an answer appended."""
    own: dict[str, TokenIds]
    """Of answers tokenised alone, where these ids decode to the same text after a prompt."""


def tokenize_pairs(
    pairs: Sequence[Pair],
    tokenizer: Any | None,
    max_tokens: int,
    special_tokens: bool = True,
    vocab_size: int | None = None,
    left_out: list[str] | None = None,
    answer_tokens: int | None = None,
) -> list[Example]:
    """Tokenise and check pairs. Returns one Example per pair, in order; `Example.id` is the index of the pair.

    tokenizer: may be None if prompts and answers are token ids. max_tokens: limit of prompt and answer together. left_out: list to
    which the problem of each bad pair is appended; the pair is then left out. If left_out is None, the first bad pair raises
    UserError naming file, row and reason. answer_tokens: first tokens of an answer that are scored; None for all.
    """
    sound: list[tuple[int, Pair]] = []
    for index, pair in enumerate(pairs):
        with _collecting_errors(left_out):
            _check_text(pair, tokenizer)
            sound.append((index, pair))
    tokens = {}
    for rendered in (False, True):
        chosen = [pair for _, pair in sound if bool(pair.messages) == rendered]
        # A rendered conversation has its special tokens in its text.
        settings = tokenizer, special_tokens and not rendered
        try:
            tokens[rendered] = _tokenise(chosen, *settings)
        except UserError:  # about one of the texts: the others are read without it
            readable = []
            for pair in chosen:
                with _collecting_errors(left_out):
                    _tokenise([pair], *settings)
                    readable.append(pair)
            tokens[rendered] = _tokenise(readable, *settings)
            sound = [(index, pair) for index, pair in sound if bool(pair.messages) != rendered or pair in readable]
    examples: list[Example] = []
    seen: dict[tuple, str] = {}
    judged: dict[TokenIds, dict[TokenIds, tuple[bool, str]]] = {}
    for index, pair in sound:
        with _collecting_errors(left_out):
            example = _example(index, pair, tokens[bool(pair.messages)], answer_tokens)
            _check(example, max_tokens, vocab_size)
            key = example[1:5]
            if key in seen:
                raise UserError(f"{pair.source}: the same pair as {seen[key]}; remove one")
            _check_agrees(example, judged.setdefault(example.clean, {}))
            seen[key] = pair.source
            examples.append(example)
    return examples


@contextmanager
def _collecting_errors(left_out: list[str] | None) -> Iterator[None]:
    """Append a UserError to the list instead of raising the error, if there is a list."""
    try:
        yield
    except UserError as error:
        if left_out is None:
            raise
        left_out.append(str(error))


def _check_text(pair: Pair, tokenizer: Any | None) -> None:
    """Raise UserError for what can be seen before tokenisation."""
    if not pair.clean or not pair.corrupted:
        raise UserError(f"{pair.source}: the {'corrupted' if pair.clean else 'clean'} prompt is empty; fill it in")
    if pair.clean == pair.corrupted:
        raise UserError(
            f"{pair.source}: clean and corrupted prompt are the same; the corrupted one must change the answer"
        )
    if not pair.answers or not pair.wrong_answers or not all((*pair.answers, *pair.wrong_answers)):
        raise UserError(f"{pair.source}: an answer is empty; give at least one answer and one wrong answer")
    for group in (pair.answers, pair.wrong_answers):
        twice = [answer for answer, count in Counter(group).items() if count > 1][:1]
        if twice:
            raise UserError(f"{pair.source}: {twice[0]!r} is given twice and would count twice; remove one")
    wrong = set(pair.wrong_answers)
    for answer in pair.answers:
        if answer in wrong:
            raise UserError(f"{pair.source}: {answer!r} is both an answer and a wrong answer; remove it from one")
    has_text = any(isinstance(text, str) for text in (pair.clean, pair.corrupted, *pair.answers, *pair.wrong_answers))
    if has_text and tokenizer is None:
        raise UserError(f"{pair.source}: the row is text but the model has no tokenizer; write token ids instead")


def _tokenise(pairs: Sequence[Pair], tokenizer: Any | None, special_tokens: bool) -> _Tokens:
    """Tokenise each distinct text once, in batched calls. Raises UserError, naming the first pair, if the tokenizer raises."""
    texts: dict[str, None] = {}
    answers: dict[str, None] = {}
    for pair in pairs:
        added = [answer for answer in _continuations(pair) if isinstance(answer, str)]
        for prompt in (pair.clean, pair.corrupted):
            if isinstance(prompt, str):
                answers.update(dict.fromkeys(added))
                texts.update(dict.fromkeys((prompt, *(prompt + answer for answer in added))))
    if not texts:
        return _Tokens({}, {})
    assert tokenizer is not None
    subject = f"{pairs[0].source}: the model's tokenizer cannot read its texts"
    with explain_library_errors(subject, None, "reword them, or mend the tokenizer"):
        rows = tokenizer(list(texts), add_special_tokens=special_tokens, return_attention_mask=False)["input_ids"]
        # A tokenizer that ends every text with an end token would put that token between prompt and answer.
        end = added_tokens(tokenizer, list(texts))[1] if special_tokens else ()
        joined = {text: _without_end(tuple(row), end) for text, row in zip(texts, rows, strict=True)}
        return _Tokens(joined, _own(list(answers), next(iter(joined.values())), tokenizer))


def added_tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[TokenIds, TokenIds]:
    """Find the special tokens that a tokenizer adds before and after every text, by tokenising a text with and without them.

    texts: some texts, for tokenizers that do not know the letter a.
    """
    special = set(tokenizer.all_special_ids)
    for text in ("a", *texts[:_TRIED]):
        bare, whole = (tuple(tokenizer(text, add_special_tokens=add)["input_ids"]) for add in (False, True))
        starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
        # A special token of the text itself would hide which ones are added.
        if bare and not special & set(bare) and starts:
            return whole[: starts[0]], whole[starts[0] + len(bare) :]
    return (), ()


_TRIED = 100
"""Texts that are tried, besides the letter a, before a tokenizer is taken to add nothing."""


def _without_end(ids: TokenIds, end: TokenIds) -> TokenIds:
    """Cut the tokens that the tokenizer has added after a text."""
    return ids[: -len(end)] if end and ids[-len(end) :] == end else ids


def _own(answers: Sequence[str], before: TokenIds, tokenizer: Any) -> dict[str, TokenIds]:
    """Tokenise answers alone; answers to which the tokenizer adds a space (SentencePiece) are left out.

    before: token ids of some prompt, after which the answers are decoded.
    """
    if not answers:
        return {}
    rows = tokenizer(list(answers), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    read = tokenizer.batch_decode(
        [list(before), *([*before, *row] for row in rows)], clean_up_tokenization_spaces=False
    )
    return {a: tuple(row) for a, row, text in zip(answers, rows, read[1:], strict=True) if text == read[0] + a}


def _continuations(pair: Pair) -> tuple[Text, ...]:
    return (*pair.answers, *pair.wrong_answers)


def _example(index: int, pair: Pair, tokens: _Tokens, answer_tokens: int | None) -> Example:
    clean, after_clean = _divide(pair, pair.clean, tokens)
    corrupted, after_corrupted = _divide(pair, pair.corrupted, tokens)
    if len(clean) != len(corrupted):
        raise UserError(
            f"{pair.source}: clean has {len(clean)} tokens and corrupted {len(corrupted)}; "
            "reword one, a pair must have equal token length"
        )
    if after_clean != after_corrupted:
        raise UserError(
            f"{pair.source}: an answer is tokenised differently after clean and after corrupted; reword the end"
        )
    right = len(pair.answers)
    return Example(
        id=index,
        clean=clean,
        corrupted=corrupted,
        answers=_beginnings(after_clean[:right], answer_tokens),
        wrong_answers=_beginnings(after_clean[right:], answer_tokens),
        source=pair.source,
    )


def _beginnings(answers: Sequence[TokenIds], count: int | None) -> tuple[TokenIds, ...]:
    """Return the distinct first tokens of answers; None for all."""
    return tuple(answers) if count is None else tuple(dict.fromkeys(ids[:count] for ids in answers))


def _divide(pair: Pair, prompt: Text, tokens: _Tokens) -> tuple[TokenIds, tuple[TokenIds, ...]]:
    """Return the context that all continuations share, and the tokens that each continuation adds."""
    if not isinstance(prompt, str):
        return prompt, tuple(_ids(pair, answer) for answer in _continuations(pair))
    alone = tokens.joined[prompt]
    whole = [tokens.joined[prompt + a] if isinstance(a, str) else alone + a for a in _continuations(pair)]
    if any(ids[: len(alone)] == alone for ids in whole):
        for place, answer in enumerate(_continuations(pair)):
            if whole[place][: len(alone)] != alone and answer in tokens.own:
                whole[place] = alone + tokens.own[answer]
    context = tuple(commonprefix([alone, *whole]))
    return context, tuple(ids[len(context) :] for ids in whole)


def _ids(pair: Pair, answer: Text) -> TokenIds:
    """Return the token ids of an answer to a prompt of token ids. Raises UserError if the answer is text."""
    if isinstance(answer, str):
        raise UserError(
            f"{pair.source}: the prompt is token ids but the answer {answer!r} is text; write both the same way"
        )
    return answer


def _check(example: Example, max_tokens: int, vocab_size: int | None) -> None:
    """Raise UserError for what can be seen only after tokenisation."""
    if not example.clean:
        raise UserError(f"{example.source}: nothing is left before the answer; lengthen the prompt")
    if example.clean == example.corrupted:
        raise UserError(f"{example.source}: clean and corrupted prompt have the same tokens; change the corrupted one")
    indistinct = _indistinct(example)
    if indistinct:
        right, wrong = map(len, indistinct)
        raise UserError(
            f"{example.source}: an answer and a wrong answer share all scored tokens ({min(right, wrong)} of "
            f"{right} and {wrong}); nothing tells them apart, make them differ within that length"
        )
    # The last token of an answer is predicted and never an input.
    longest = len(example.clean) + max(map(len, (*example.answers, *example.wrong_answers))) - 1
    if longest > max_tokens:
        raise UserError(
            f"{example.source}: {longest} tokens with the answer, more than {max_tokens}; shorten it, or raise "
            "task.max_tokens if the model reads that far"
        )
    rows = count_rows(example)
    if rows > _MOST_ROWS:
        raise UserError(
            f"{example.source}: its answers have {rows:,} different beginnings, more than {_MOST_ROWS}, and each is a row that "
            "goes through the model in the same pass; give fewer answers, or set task.answer_tokens to 1"
        )
    if vocab_size is not None:
        _check_vocabulary(example, vocab_size)


def _check_agrees(example: Example, judged: dict[TokenIds, tuple[bool, str]]) -> None:
    """Raise UserError if an answer of a pair is a wrong answer of another one with the same clean prompt, or the other way round.

    judged: answers to the prompt so far -> whether they are right, and which pair says so; those of this pair are added.
    """
    own = {**dict.fromkeys(example.wrong_answers, False), **dict.fromkeys(example.answers, True)}
    for answer, right in own.items():
        before, source = judged.get(answer, (right, ""))
        if before != right:
            raise UserError(
                f"{example.source}: what is {'an answer' if right else 'a wrong answer'} here is "
                f"{'a wrong answer' if right else 'an answer'} to the same prompt at {source}; remove one of the two pairs"
            )
    for answer, right in own.items():
        judged.setdefault(answer, (right, example.source))


def _indistinct(example: Example) -> tuple[TokenIds, TokenIds] | None:
    """Find a right and a wrong answer, one of which is a prefix of the other; looks up prefixes instead of comparing pairs."""
    rights, wrongs = set(example.answers), set(example.wrong_answers)
    for right in example.answers:
        for end in range(len(right) + 1):
            if right[:end] in wrongs:
                return right, right[:end]
    for wrong in example.wrong_answers:
        for end in range(len(wrong) + 1):
            if wrong[:end] in rights:
                return wrong[:end], wrong
    return None


def _check_vocabulary(example: Example, vocab_size: int) -> None:
    every: Iterable[TokenIds] = (example.clean, example.corrupted, *example.answers, *example.wrong_answers)
    bad = next((token for ids in every for token in ids if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise UserError(
            f"{example.source}: token id {bad} is outside the model's vocabulary of {vocab_size}; "
            "the ids were made with another tokenizer"
        )
