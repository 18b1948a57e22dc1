"""Engines that say what a test wants said, and remember what they were asked."""

from collections.abc import Callable

from humpback_ray.engines import Completion, Request
from humpback_ray.prompts.chat import ChatRecipe, TurnFormat

CHAT = ChatRecipe(forward=TurnFormat(opening="Q: ", turn="\nA: "), seed_tag="S.", web_tag="W.")
ROW = {"id": "r1", "instruction": "What is a weir?", "response": "A low dam."}


class Judge:
    """An engine that says what a function of the request says."""

    def __init__(self, reply: Callable[[Request], Completion]) -> None:
        self.reply = reply
        self.asked: list[Request] = []

    async def generate(self, request: Request) -> Completion:
        self.asked.append(request)
        return self.reply(request)

    def close(self) -> None:
        pass


def judge_of(*replies: tuple[str, str]) -> Judge:
    """Replies (text, finish reason) in this order, each of 7 tokens after 50."""
    queue = iter(replies)

    def reply(request: Request) -> Completion:
        text, finish_reason = next(queue)
        return Completion(text, 50, 7, finish_reason)  # type: ignore[arg-type]

    return Judge(reply)
