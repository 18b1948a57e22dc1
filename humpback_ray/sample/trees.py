"""Seed pairs in Open Assistant's export format: message trees, including every kind that the selection rules drop.

Every seed town has one tree that counts: a question, the assistant's answer of rank 0, sometimes a worse answer of
rank 1 and a second turn. Mixed in are trees that must be dropped: another language, deleted, synthetic, without a reply
of rank 0, without replies.
"""

import uuid
from random import Random

from humpback_ray.sample.facts import ATTRIBUTES, Fact, Truth
from humpback_ray.sample.texts import answer_text, junk, other_fact, question

Message = dict[str, object]
"""A message, or a tree of messages, as exported."""


def seed_trees(truth: Truth, rng: Random) -> list[Message]:
    """Return one good tree per seed town and two for each reason to drop one, shuffled."""
    facts = [truth.facts[town][ATTRIBUTES[i % len(ATTRIBUTES)].noun] for i, town in enumerate(truth.towns["seed"])]
    trees = [_good(fact, truth, rng) for fact in facts]
    for fact in facts[:2]:
        trees += [
            _deleted(fact, rng),
            _synthetic(fact, rng),
            _foreign(fact, rng),
            _unranked(fact, truth, rng),
            _silent(fact, rng),
        ]
    rng.shuffle(trees)
    return trees


def _good(fact: Fact, truth: Truth, rng: Random) -> Message:
    best = _message(answer_text(fact, rng).text, "assistant", rng, rank=0)
    replies = [best]
    if rng.random() < 0.4:
        wrong = other_fact(fact, truth, rng, town=True, noun=True)
        replies.append(_message(answer_text(wrong, rng).text, "assistant", rng, rank=1))
    if rng.random() < 0.3:
        again = other_fact(fact, truth, rng, town=False, noun=True)
        answer = _message(answer_text(again, rng).text, "assistant", rng, rank=0)
        best["replies"] = [_message(question(again, rng), "prompter", rng, replies=[answer])]
    rng.shuffle(replies)
    return _tree(_message(question(fact, rng), "prompter", rng, replies=replies))


def _deleted(fact: Fact, rng: Random) -> Message:
    reply = _message(answer_text(fact, rng).text, "assistant", rng, rank=0, deleted=True)
    return _tree(_message(question(fact, rng), "prompter", rng, replies=[reply]))


def _synthetic(fact: Fact, rng: Random) -> Message:
    reply = _message(answer_text(fact, rng).text, "assistant", rng, rank=0, synthetic=True)
    return _tree(_message(question(fact, rng), "prompter", rng, replies=[reply], synthetic=True))


def _foreign(fact: Fact, rng: Random) -> Message:
    reply = _message(f"In {fact.town} ist es {fact.value}, das weiß jeder.", "assistant", rng, rank=0, lang="de")
    return _tree(_message(f"Was ist bekannt von {fact.town}?", "prompter", rng, replies=[reply], lang="de"))


def _unranked(fact: Fact, truth: Truth, rng: Random) -> Message:
    replies = [_message(junk("chatter", fact, truth, rng).text, "assistant", rng, rank=rank) for rank in (1, 2)]
    return _tree(_message(question(fact, rng), "prompter", rng, replies=replies))


def _silent(fact: Fact, rng: Random) -> Message:
    return _tree(_message(question(fact, rng), "prompter", rng))


def _tree(prompt: Message) -> Message:
    return {"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt}


def _message(text: str, role: str, rng: Random, replies: list[Message] | None = None, **more: object) -> Message:
    values = {
        "message_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "text": text,
        "role": role,
        "lang": "en",
    }
    return {
        **values,
        "review_count": 3,
        "deleted": False,
        "synthetic": False,
        "rank": None,
        **more,
        "replies": replies or [],
    }
