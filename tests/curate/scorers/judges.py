"""Engines that give the replies of a test and remember their requests."""

from collections.abc import Callable

from humpback_ray.engines import Completion, Request
from humpback_ray.prompts.chat import ChatRecipe, TurnFormat

CHAT = ChatRecipe(forward=TurnFormat(opening="Q: ", turn="\nA: "), seed_tag="S.", web_tag="W.")
ROW = {"id": "r1", "instruction": "What is a weir?", "response": "A low dam."}


class Judge:
    """An engine that replies with a function of the request."""

    def __init__(self, reply: Callable[[Request], Completion]) -> None:
        self.reply = reply
        self.asked: list[Request] = []

    async def generate(self, request: Request) -> Completion:
        self.asked.append(request)
        return self.reply(request)

    def close(self) -> None:
        pass


def judge_of(*replies: tuple[str, str]) -> Judge:
    """A judge that gives these replies (text, finish reason) in order, each with 7 tokens after a prompt of 50."""
    queue = iter(replies)

    def reply(request: Request) -> Completion:
        text, finish_reason = next(queue)
        return Completion(text, 50, 7, finish_reason)  # type: ignore[arg-type]

    return Judge(reply)
