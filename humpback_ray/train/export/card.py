"""The model card: describes a model to readers who find its directory without its run."""

import yaml

from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.job import TrainJob, TrainResult
from humpback_ray.train.recipe import Lora, TrainRecipe


def model_card(job: TrainJob, result: TrainResult) -> str:
    """Return README.md with the metadata that the Hugging Face Hub reads; it names no time, place or speed."""
    parts = [_front(job), _origin(job, result), _data(job, result), _losses(result), _use(job)]
    return "\n".join(parts)


def _front(job: TrainJob) -> str:
    origin = job.provenance
    head: dict[str, object] = {
        "license": origin.licence, "library_name": "transformers", "pipeline_tag": "text-generation",
        "base_model": origin.base or None, "tags": ["humpback", "instruction-backtranslation"],
    }  # fmt: skip
    front = yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n"


def _origin(job: TrainJob, result: TrainResult) -> str:
    origin = job.provenance
    return f"""# {job.model}{f" of {origin.run}" if origin.run else ""}

{_what(job)} Made by humpback_ray, instruction backtranslation (Li et al. 2023, arXiv:2308.06259).

- base model: {origin.base or "not named"}{f", digest `{origin.base_digest[:12]}`" if origin.base_digest else ""}
- recipe fingerprint: `{origin.fingerprint or "none"}`
- license: {origin.licence}
- method: {_method(job.recipe, result)}
- {len(result.metrics):,} steps of {result.batch_examples} examples, {result.output_tokens:,} output tokens
"""


def _data(job: TrainJob, result: TrainResult) -> str:
    rows = "\n".join(f"| {stage} | {kept:,} | `{digest[:12]}` |" for stage, kept, digest in job.provenance.inputs)
    return f"""## Data

| pairs | kept | digest |
|---|---|---|
{rows or "| not named | | |"}

Of these, {result.examples["kept"]:,} were trained on ({result.examples["truncated"]:,} of them cut at the end),
{result.examples["too_long"]:,} were too long, and {result.examples["held_out"]:,} held out for validation.
"""


def _losses(result: TrainResult) -> str:
    return f"""## Losses

Nats per output token.

| | first | last |
|---|---|---|
| training | {result.metrics[0].loss:.4f} | {result.metrics[-1].loss:.4f} |
{_validation(result)}"""


def _use(job: TrainJob) -> str:
    return f"""## Use

```
vllm serve PATH
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH", dtype="auto")
messages = [{{"role": "user", "content": "{_example(job)}"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
reply = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

PATH is this directory. {_layout(job.chat, job)}
"""


def _what(job: TrainJob) -> str:
    if job.direction == "backward":
        return "Predicts, for a text, an instruction that the text answers."
    return "Follows instructions."


def _method(recipe: TrainRecipe, result: TrainResult) -> str:
    if isinstance(recipe.method, Lora):
        return (
            f"LoRA of rank {recipe.method.rank}, {result.trainable_parameters:,} of {result.parameters:,} parameters; "
            "merged here, and by itself in `adapter/`"
        )
    return f"all of {result.parameters:,} parameters"


def _validation(result: TrainResult) -> str:
    found = [step.validation_loss for step in result.metrics if step.validation_loss is not None]
    return f"| held-out seed pairs | {found[0]:.4f} | {found[-1]:.4f} |\n" if found else ""


def _example(job: TrainJob) -> str:
    return "A text of the web." if job.direction == "backward" else "Why is the sky blue?"


def _layout(chat: ChatRecipe, job: TrainJob) -> str:
    tags = () if job.direction == "backward" else chat.tags("both")
    said = "`chat_template.jinja` is the layout of training"
    tagged = f"{said}, with its source tags: {' '.join(tags)}" if tags else f"{said}."
    return f"{tagged} System messages are read with the user message behind them. There are no tools and no images."
