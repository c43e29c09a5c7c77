"""What a step of several programs costs, from the cost of each."""

from kaprune_jax.train.cost import StepCost, cost_of_parts


def test_results_of_earlier_programs_are_held_until_the_last_has_run():
    first = StepCost(1000, 100, 50, 0, {"all-reduce": 7}, {})
    second = StepCost(1000, 200, 500, 0, {"all-reduce": 1, "all-gather": 5}, {"all-reduce": 3})
    last = StepCost(1200, 900, 20, 890, {}, {"all-reduce": 2})
    cost = cost_of_parts([first, second, last], 1100)
    assert cost == StepCost(1100, 900, 800, 890, {"all-reduce": 8, "all-gather": 5}, {"all-reduce": 5})
    assert cost.peak == 1100 + 900 - 890 + 800  # while the second runs: what it needs, and what two have put out
    assert cost_of_parts([first, second, last._replace(temporaries=501)], 1100).temporaries == 801
    assert first.collectives == {"all-reduce": 7}


def test_a_single_program_costs_what_it_costs():
    cost = StepCost(1000, 100, 50, 0, {"all-reduce": 7}, {})
    assert cost_of_parts([cost], 2000) is cost
