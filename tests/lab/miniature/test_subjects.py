"""The novel subjects are unnameable, unseen and the same everywhere."""
from __future__ import annotations

from miniature.factors import CLASSES, NAMED_PATTERNS
from miniature.subjects import SETS, fresh_subjects, public_subjects, tuning_subjects


def test_public_set_has_a_subject_of_every_class_and_five_pictures_a_set():
    subjects = public_subjects()
    assert [s.identity.kind for s in subjects] == list(CLASSES) and len(subjects) >= 12
    for subject in subjects:
        assert tuple(subject.sets) == SETS
        assert all(len(scenes) == 5 and {s.identity for s in scenes} == {subject.identity}
                   for scenes in subject.sets.values())


def test_no_caption_can_name_them_and_training_never_saw_them():
    for subject in public_subjects() + fresh_subjects(20, 3):
        assert not subject.identity.named and subject.identity.held_out
        assert subject.identity.first.words is None and subject.identity.second.words is None
    for subjects in (public_subjects(), fresh_subjects(20, 3)):
        assert [subject.identity.pattern == "plain" for subject in subjects] == [True, False] * (len(subjects) // 2)
        assert all(subject.identity.pattern not in NAMED_PATTERNS for subject in subjects[1::2])


def test_limited_context_is_one_place_and_pose_and_varied_is_not():
    for subject in public_subjects():
        assert len({(s.background, s.pose, s.style) for s in subject.sets["limited"]}) == 1
        assert len({s.seed for s in subject.sets["limited"]}) == 5
        assert len({s.background for s in subject.sets["varied"]}) == 5
        assert len({s.pose for s in subject.sets["varied"]}) == 4
        assert all(s.second is not None for s in subject.sets["accompanied"])


def test_subjects_depend_on_the_seed_alone():
    assert public_subjects() == public_subjects()
    assert fresh_subjects(8, 1) == fresh_subjects(8, 1)
    assert fresh_subjects(8, 1)[:3] == fresh_subjects(3, 1)
    assert not {s.identity for s in fresh_subjects(8, 1)} & {s.identity for s in fresh_subjects(8, 2)}


def test_settings_are_chosen_on_subjects_that_no_table_reports():
    tuning = tuning_subjects()
    assert [s.identity.kind for s in tuning] == list(CLASSES)
    assert not {s.identity for s in tuning} & {s.identity for s in public_subjects()}
