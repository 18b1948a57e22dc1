"""Ask an exported model, with nothing but transformers.

    python -m jobs.export out/demo/models/m2 served/m2
    python examples/ask.py served/m2 "What does the flag of Ulton show?"

The model's `chat_template.jinja` is the layout it was trained in, source tags included, so a plain user message is all
that it takes.
"""

import sys
from typing import Any


def main(argv: list[str]) -> int:
    """Print the model's reply to a question."""
    if len(argv) != 2:
        print("usage: python examples/ask.py DIRECTORY QUESTION", file=sys.stderr)
        return 2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, question = argv
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    reply = model.generate(**prompt, max_new_tokens=64, do_sample=False)
    print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
