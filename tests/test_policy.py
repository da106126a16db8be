"""Rules over scores: which fire, how they add up, and that nothing unknown passes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsafety import Policy, PolicyError, Reason, Scores, load_policy
from imgsafety.policy import Rule, check_fit, decide, parse_policy, shipped_policies
from imgsafety.result import SEVERITY
from imgsafety.session import score_names
from tests.toy import POLICY, SPEC

TOY = parse_policy(POLICY)
QUIET = {"minor": 0.0, "exposed": 0.0, "minimal_attire": 0.0}
NOT_NUMBERS = [float("nan"), float("inf"), float("-inf")]
PROBABILITY, NAMES = st.floats(0, 1), st.sampled_from(sorted(QUIET))


def scores(**named):
    return Scores({}, {**QUIET, **named})


def rules(decision):
    return [reason.rule for reason in decision.reasons]


def test_no_rule_fires_on_harmless_scores():
    verdict = decide(TOY, scores())
    assert (verdict.decision, verdict.reasons, verdict.error) == ("allow", (), None)


def test_a_rule_needs_all_its_scores():
    assert decide(TOY, scores(minor=0.9)).decision == "allow"
    assert decide(TOY, scores(minor=0.9, exposed=0.9)).decision == "block"


def test_a_threshold_itself_fires():
    assert decide(TOY, scores(minimal_attire=0.5)).decision == "review"
    assert decide(TOY, scores(minimal_attire=math.nextafter(0.5, 0))).decision == "allow"


def test_the_gravest_outcome_decides_and_all_reasons_are_named():
    verdict = decide(TOY, scores(minor=0.4, exposed=0.8, minimal_attire=0.7))
    assert verdict.decision == "block"
    assert rules(verdict) == ["minor-exposed", "minimal-attire"]
    assert verdict.reasons[0] == Reason("minor-exposed", "block", {"minor": 0.4, "exposed": 0.8})


def test_a_label_is_a_reason_and_leaves_the_verdict():
    verdict = decide(parse_policy(POLICY.replace('verdict = "review"', 'verdict = "label"')), scores(minimal_attire=1.0))
    assert verdict.decision == "allow" and rules(verdict) == ["minimal-attire"]


def test_an_edit_rule_needs_the_picture_that_came_in():
    bare = scores(minimal_attire=0.9)
    assert rules(decide(TOY, bare)) == ["minimal-attire"]
    assert rules(decide(TOY, bare, before=scores())) == ["undressed", "minimal-attire"]
    assert rules(decide(TOY, bare, before=bare)) == ["minimal-attire"]


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize("name", QUIET)
def test_a_score_that_is_not_finite_is_undecided(name, value):
    verdict = decide(TOY, scores(**{name: value}))
    assert verdict.decision == "undecided" and name in verdict.error


@pytest.mark.parametrize("name", QUIET)
def test_a_missing_score_is_undecided(name):
    named = {key: 0.0 for key in QUIET if key != name}
    assert decide(TOY, Scores({}, named)).decision == "undecided"


@pytest.mark.parametrize("value", [*NOT_NUMBERS, None])
def test_a_missing_score_of_the_picture_that_came_in_is_undecided(value):
    before = Scores({}, {} if value is None else {"minimal_attire": value})
    assert decide(TOY, scores(), before).decision == "undecided"


def test_what_is_known_to_block_blocks_though_another_score_is_missing():
    verdict = decide(TOY, Scores({}, {"minor": 0.9, "exposed": 0.9}))
    assert verdict.decision == "block" and verdict.error


def test_a_policy_with_no_rule_to_ask_allows_nothing():
    edits = Policy("edits", "toy 1", tuple(rule for rule in TOY.rules if rule.before_below))
    assert decide(edits, scores()).decision == "undecided" and decide(edits, scores(), scores()).decision == "allow"
    none = Policy("none", "toy 1", ())
    assert decide(none, scores()).decision == decide(none, scores(), scores()).decision == "undecided"


@given(st.dictionaries(NAMES, st.sampled_from(NOT_NUMBERS), min_size=1), st.dictionaries(NAMES, PROBABILITY))
def test_damaged_scores_are_never_allowed(damage, others):
    assert decide(TOY, scores(**{**others, **damage})).decision in ("undecided", "block")


@given(st.dictionaries(NAMES, PROBABILITY), NAMES, PROBABILITY)
def test_a_higher_score_never_makes_a_verdict_milder(named, name, value):
    before, after = scores(**named), scores(**{**named, name: max(value, named.get(name, 0.0))})
    assert SEVERITY[decide(TOY, after).decision] >= SEVERITY[decide(TOY, before).decision]


def test_a_policy_for_another_model_does_not_fit():
    with pytest.raises(PolicyError, match=r"calibrated for model 'toy 1', not 'toy 2'.*training\.calibrate"):
        check_fit(TOY, "toy 2", score_names(SPEC))


def test_a_policy_for_another_training_of_the_same_model_does_not_fit():
    policy = parse_policy(POLICY + f"\n[calibration]\nmodel_sha256 = '{'a' * 64}'\n")
    check_fit(policy, "toy 1", score_names(SPEC), "a" * 64)
    with pytest.raises(PolicyError, match=r"another file of model 'toy 1'.*training\.calibrate"):
        check_fit(policy, "toy 1", score_names(SPEC), "b" * 64)


def test_a_policy_that_names_an_unknown_head_does_not_fit():
    policy = parse_policy(POLICY.replace("minimal_attire", '"mood.wild"'))
    with pytest.raises(PolicyError, match=r"mood\.wild"):
        check_fit(policy, "toy 1", score_names(SPEC))


def test_a_policy_may_name_any_score_of_the_model():
    policy = parse_policy(POLICY.replace("minimal_attire", '"attire.at_least.revealing"').replace("minor =", '"age.under_12" ='))
    check_fit(policy, "toy 1", score_names(SPEC))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "at least one"),
        ("rules = [", "not TOML"),
        ("rules = []", "at least one"),
        ("rules = [1]", "must be"),
        (POLICY.replace('name = "toy"', ""), "name"),
        (POLICY.replace('model = "toy 1"', ""), "model"),
        (POLICY.replace("block", "destroy"), "'destroy' is not one of"),
        (POLICY.replace('"minor-exposed"', '""'), "name"),
        (POLICY.replace("undressed", "minimal-attire"), "two rules have the same name"),
        (POLICY.replace("when = { minor = 0.3, exposed = 0.3 }", ""), "needs at least one `score = threshold`"),
        (POLICY.replace("when = { minor", "if = { minor"), "unknown key 'if'"),
        (POLICY.replace("minor = 0.3", "minor = 1.3"), "not a number from 0 to 1"),
        (POLICY.replace("minor = 0.3", "minor = -0.1"), "not a number from 0 to 1"),
        (POLICY.replace("minor = 0.3", "minor = nan"), "not a number from 0 to 1"),
        (POLICY.replace("minor = 0.3", "minor = true"), "not a number from 0 to 1"),
        (POLICY.replace("minor = 0.3", 'minor = "high"'), "not a number from 0 to 1"),
        (POLICY.replace("minor = 0.3", "age.under_12 = 0.3"), "names with dots in quotes"),
        (POLICY.replace("before_below = { minimal_attire = 0.3 }", "before_below = {}"), "needs at least one"),
        (POLICY + "[thorough]\nexposed = 0.5", "thorough must be a table of turn, negative"),
        (POLICY + "[thorough.turn]\nexposed = 1.5", "thorough.turn: threshold of 'exposed'"),
        (POLICY + "[zoom]\nexposed = 1.5", "zoom: threshold of 'exposed'"),
        (POLICY + "[thorough.whole]\nexposed = 0.5", "thorough must be a table of turn, negative"),
    ],
)
def test_a_malformed_policy_says_what_is_wrong(wrong, message):
    with pytest.raises(PolicyError, match=message):
        parse_policy(wrong)


def test_a_policy_is_found_by_name_or_by_path(toy_policy_path):
    assert load_policy().name == "default"
    assert load_policy(toy_policy_path) == load_policy(str(toy_policy_path)) == TOY


@pytest.mark.parametrize("policy", ["nowhere", "nowhere.toml", "."])
def test_an_unknown_policy_names_those_that_are_there(policy):
    with pytest.raises(PolicyError, match="audit, default, strict"):
        load_policy(policy)


def test_a_policy_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError):
        load_policy(tmp_path / "binary.toml")


def shipped(name: str) -> Policy:
    return load_policy(name)


def test_shipped_policies_know_their_names():
    names = {"default", "strict", "audit"}
    assert {shipped(name).name for name in shipped_policies()} == names == set(shipped_policies())


@pytest.mark.parametrize("name", ["default", "strict"])
def test_gates_block_apparent_minors_and_undressing(name):
    blocking = {rule.name for rule in shipped(name).rules if rule.verdict == "block"}
    assert {"minor-exposed", "undressed"} <= blocking


def test_an_audit_holds_nothing_back():
    assert {rule.verdict for rule in shipped("audit").rules} == {"label"}


def test_a_misspelt_table_is_not_left_out_in_silence():
    with pytest.raises(PolicyError, match="unknown key 'rule'"):
        parse_policy(POLICY + "\n[[rule]]\nname = 'x'\n")


def test_a_look_asks_for_more_and_never_for_less():
    policy = parse_policy(POLICY + "[thorough.turn]\nexposed = 0.9\nminimal_attire = 0.1\n")
    assert [rule.when for rule in policy.for_look("turn").rules] == [
        {"minor": 0.3, "exposed": 0.9},
        {"minimal_attire": 0.5},
        {"minimal_attire": 0.5},
    ]
    assert policy.for_look("whole") is policy.for_look("negative") is policy
    with pytest.raises(PolicyError, match="exposed"):
        check_fit(policy, "toy 1", frozenset({"minor", "minimal_attire"}))


@pytest.mark.parametrize(("verdict", "threshold"), [("blok", 0.5), ("block", float("nan")), ("block", 2.0)])
def test_a_rule_that_is_made_in_a_program_is_checked_as_well(verdict, threshold):
    with pytest.raises(PolicyError):
        Rule("mine", verdict, {"minimal_attire": threshold})


def test_a_number_of_thousands_of_digits_is_a_policy_error():
    for number in ("0x" + "f" * 5000, "-1" + "0" * 400):
        with pytest.raises(PolicyError, match="not a number from 0 to 1"):
            parse_policy(POLICY.replace("minor = 0.3", f"minor = {number}"))
    with pytest.raises(PolicyError):
        load_policy("a\0b")
