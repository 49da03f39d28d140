"""Which prompts there are."""

from bench.prompts import RANDOM, WORKLOADS, load_prompts, random_prompts


def test_prompts_of_the_file() -> None:
    prompts = load_prompts(8)
    assert list(prompts) == list(WORKLOADS)
    assert [len(group) for group in prompts.values()] == [8, 8, 8]
    ids = [prompt.id for group in prompts.values() for prompt in group]
    assert len(set(ids)) == len(ids)
    assert [len(group) for group in load_prompts(2).values()] == [2, 2, 2]


def test_random_prompts_are_the_same_each_time() -> None:
    prompts = random_prompts(3, vocab_size=50, length=20)
    assert prompts == random_prompts(3, vocab_size=50, length=20)
    assert {prompt.workload for prompt in prompts} == {RANDOM}
    assert all(len(prompt.token_ids) == 20 and max(prompt.token_ids) < 50 for prompt in prompts)
    assert prompts[0].token_ids != prompts[1].token_ids
