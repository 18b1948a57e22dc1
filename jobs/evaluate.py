"""Answer the evaluation prompts with every model; write AlpacaEval's JSON beside each table.

    python -m jobs.evaluate configs/demo.yaml 'evaluate.recipe.inputs=[questions.jsonl]'

Safe to submit again after a crash.
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(run_until(None, str(__doc__), lambda found, config: f"evaluation/m{len(config.curate.recipe.rounds)}"))
