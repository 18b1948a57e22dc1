import pytest

from humpback_ray.train.recipe import TrainRecipe


def test_the_defaults_are_the_papers() -> None:
    recipe = TrainRecipe()
    assert (recipe.learning_rate, recipe.final_learning_rate) == (1e-5, 9e-6)
    assert (recipe.weight_decay, recipe.dropout, recipe.batch_examples) == (0.1, 0.1, None)


def test_a_models_settings_do_not_contain_those_of_other_models() -> None:
    recipe = TrainRecipe(steps={"m0": 80, "m1": 120}, learning_rates={"m0": 6e-4}, final_learning_rates={"m1": 1e-5})
    alone = recipe.of("m0")
    assert alone.rates("m0") == recipe.rates("m0") == (6e-4, 9e-6)
    assert alone.steps == {"m0": 80}
    assert alone == recipe.model_copy(update={"steps": {"m0": 80, "m1": 7}}).of("m0")


@pytest.mark.parametrize(
    "bad", [{"steps": {"m0": 0}}, {"learning_rates": {"m0": -1.0}}, {"dropout": 1.0}, {"warmup": 3}]
)
def test_an_unusable_recipe_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"steps|learning_rates|dropout|warmup"):
        TrainRecipe.model_validate(bad)
