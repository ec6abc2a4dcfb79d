"""A stream's reasoning parser that neither rereads its stream for every token, nor is led astray by stop strings.

vLLM's `DelegatingParser.parse_delta` (vllm/parser/abstract_parser.py, 0.32) copies a stream's text and token ids for
each token, and DeepSeek-R1's reasoning parser searches them for `<think>`: the thousandth token costs a thousand times
what it has to, and R1-class models think for tens of thousands. Between the marks there is nothing to find: a delta
without one is thinking before `</think>`, and content after it.

And with stop strings the detokeniser holds back text that may begin one, but not its token ids: the id of `</think>`
comes before its text, vLLM's parser does not find it in the delta, and cuts in the wrong place. Here thinking ends
where that text is. All else, streams that may call tools among it, is left to vLLM.
"""

from typing import Any


class EndOfThinking:
    """Finds the end mark in text that comes in pieces."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._held = ""  # the text's end so far, as much of it as may begin the mark

    def take(self, piece: str, last: bool) -> tuple[str, str | None]:
        """(what is thinking, what is content); no content at all, None, until the mark has come."""
        thinking, mark, content = (self._held + piece).partition(self._mark)
        if mark:
            return thinking, content
        ends = (n for n in range(len(self._mark) - 1, 0, -1) if thinking.endswith(self._mark[:n]))
        cut = len(thinking) - (0 if last else next(ends, 0))
        self._held = thinking[cut:]
        return thinking[:cut], None


def without_rescans(parser_class: Any, delta_message: Any, markers_only: type) -> Any:
    """A subclass of a `DelegatingParser` that gives the same deltas, or right ones where those are cut wrong.

    `delta_message` is vLLM's `DeltaMessage`. `markers_only` is the reasoning parser whose streams are all thinking up
    to its end token: `DeepSeekR1ReasoningParser`. Streams of any other are left as they are.
    """

    class Parser(parser_class):  # type: ignore[misc]
        _end: EndOfThinking | None = None  # set when the end's id has come and its text is awaited

        def parse_delta(
            self,
            delta_text: str,
            delta_token_ids: list[int],
            request: Any,
            prompt_token_ids: list[int] | None = None,
            *,
            finished: bool,
        ) -> Any:
            state, reasoning, tools = self._stream_state, self._reasoning_parser, self._tool_parser
            ours = type(reasoning) is markers_only and request.include_reasoning
            if not ours:
                return super().parse_delta(delta_text, delta_token_ids, request, prompt_token_ids, finished=finished)
            is_text = tools is None or (request.tool_choice == "none" and not self._engine_based)
            if is_text and request.stop and not state.prompt_reasoning_checked:  # its end may be in the first delta
                super().parse_delta("", [], request, prompt_token_ids, finished=False)
            if state.prompt_reasoning_checked and state.reasoning_ended:
                if is_text and not finished:
                    return delta_message(content=delta_text) if delta_text or tools is None else None
            elif state.prompt_reasoning_checked:
                if is_text and request.stop and reasoning.end_token_id in delta_token_ids:
                    self._end = self._end or EndOfThinking(reasoning.end_token)
                if self._end is not None:
                    return self._ending(delta_text, finished)
                if not (finished or {reasoning.start_token_id, reasoning.end_token_id}.intersection(delta_token_ids)):
                    return delta_message(reasoning=delta_text)
            return super().parse_delta(delta_text, delta_token_ids, request, prompt_token_ids, finished=finished)

        def _ending(self, delta_text: str, finished: bool) -> Any:
            assert self._end is not None
            thinking, content = self._end.take(delta_text, finished)
            self._stream_state.reasoning_ended = content is not None
            parts = {"reasoning": thinking, "content": content}
            said = {name: text for name, text in parts.items() if text}
            return delta_message(**said) if said else None

    return Parser
