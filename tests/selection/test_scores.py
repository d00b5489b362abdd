"""Scores, which of several they are, and which direction is better."""

from pathlib import Path

import pytest

from streamavg.errors import OptionError
from streamavg.options import Settings
from streamavg.selection.scores import read_scores

PATHS = [Path("epoch-1.keras"), Path("epoch-2.keras")]
HISTORY = "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,2,0.4,2.5\n1,0.6,1,0.5,NA\n2,,,,\n"


def scores(paths=PATHS, given=None, **options):
    return read_scores(paths, paths if given is None else given, Settings(**options))


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(HISTORY)
    return path


@pytest.fixture
def table(tmp_path):
    def table(text):
        path = tmp_path / "table.csv"
        path.write_text(text)
        return path

    return table


class TestTheMetric:
    def test_is_the_one_asked_for(self, history):
        found = scores(scores=history, metric="accuracy")
        assert list(found.values.values()) == [0.5, 0.6]
        assert (found.metric, found.maximize, found.source) == ("accuracy", True, str(history))

    def test_is_val_loss_by_default_as_keras_callbacks_monitor(self, history):
        found = scores(PATHS[:1], scores=history)
        assert (found.metric, found.maximize) == ("val_loss", False)
        assert list(found.values.values()) == [2.5]

    def test_is_the_only_one_by_default(self, table):
        found = scores(scores=table("epoch,val_auc\n0,0.5\n1,0.6\n"))
        assert (found.metric, found.maximize) == ("val_auc", True)

    def test_of_several_is_not_guessed(self, table):
        text = "epoch,acc,loss\n0,0.5,2\n1,0.6,1\n"
        with pytest.raises(OptionError, match=r"name one with --metric\. Found 'acc', 'loss'"):
            scores(scores=table(text))

    def test_that_is_not_there_is_missed_with_what_is(self, history):
        with pytest.raises(OptionError, match="no metric 'val_los': found 'accuracy', 'loss'"):
            scores(scores=history, metric="val_los")

    def test_that_is_there_twice_is_refused(self, table):
        with pytest.raises(OptionError, match="two columns 'loss'"):
            scores(scores=table("epoch,loss,loss\n0,1,2\n1,1,2\n"), metric="loss")

    def test_of_a_mapping_has_the_name_that_is_asked_for(self):
        found = scores(scores={"epoch-1.keras": 1, "epoch-2.keras": 2}, metric="wer")
        assert (found.metric, found.maximize) == ("wer", False)


class TestTheDirection:
    SCORES: dict = {"epoch-1.keras": 1, "epoch-2.keras": 2}  # noqa: RUF012

    def test_is_refused_where_no_name_tells(self):
        with pytest.raises(OptionError, match="cannot tell whether more is better") as caught:
            scores(scores=self.SCORES)
        assert all(word in str(caught.value) for word in ("--maximize", "--minimize", "--metric"))

    def test_is_refused_where_the_name_does_not_tell(self):
        with pytest.raises(OptionError, match="'fid': cannot tell") as caught:
            scores(scores=self.SCORES, metric="fid")
        assert "--metric" not in str(caught.value)

    @pytest.mark.parametrize("maximize", [True, False])
    def test_is_what_the_user_says(self, maximize):
        options = {"maximize": maximize, "minimize": not maximize}
        assert scores(scores=self.SCORES, **options).maximize is maximize
        assert scores(scores=self.SCORES, metric="loss", **options).maximize is maximize

    def test_that_contradicts_a_metric_nobody_named_is_refused(self, history):
        """Who maximizes means an accuracy, not the val_loss that is the default."""
        with pytest.raises(OptionError, match="'val_loss', of which less is better"):
            scores(scores=history, maximize=True)
        with pytest.raises(OptionError, match="'acc', of which more is better"):
            scores([Path("1-acc0.5.h5"), Path("2-acc0.6.h5")], scores="filename", minimize=True)


class TestAHistory:
    TEXT = "epoch,loss,val_loss\n0,0.9,0.751\n1,0.8,0.649\n2,0.7,0.55\n"

    def test_agrees_with_names_that_hold_the_metric_too(self, table):
        paths = [Path("epoch1-val_loss0.75.h5"), Path("epoch2-val_loss0.65.h5")]
        assert list(scores(paths, scores=table(self.TEXT)).values.values()) == [0.751, 0.649]

    @pytest.mark.parametrize("shift", [-1, 1], ids=["names from 0", "names from 2"])
    def test_of_another_run_or_counted_otherwise_is_refused(self, table, shift):
        paths = [Path(f"epoch{2 + shift}-val_loss0.65.h5"), Path("epoch2-val_loss0.65.h5")]
        with pytest.raises(OptionError, match=r"its name says val_loss 0\.65, but .* has 0\.") as e:
            scores(paths, scores=table(self.TEXT))
        assert "--scores filename" in str(e.value)

    def test_may_disagree_with_numbers_of_other_metrics(self, table):
        paths = [Path("epoch1-acc0.1-0.5.h5"), Path("epoch2-acc0.2-0.6.h5")]
        assert scores(paths, scores=table(self.TEXT)).metric == "val_loss"


class TestMissing:
    def test_scores_are_named(self, history):
        with pytest.raises(OptionError, match=r"line 3, for epoch-2\.keras: val_loss is 'NA'"):
            scores(scores=history)

    def test_checkpoints_are_all_named(self):
        with pytest.raises(OptionError, match=r"no score for epoch-1\.keras, epoch-2\.keras\."):
            scores(scores={"other.keras": 1}, minimize=True)

    def test_scores_of_what_needs_none_are_no_matter(self, history):
        assert scores(PATHS[:1], given=PATHS, scores=history).notes == ()
        mapping = {"epoch-1.keras": 1, "epoch-2.keras": "NA"}
        found = scores(PATHS[:1], given=PATHS, scores=mapping, minimize=True)
        assert (found.values, found.notes) == ({PATHS[0]: 1}, ())

    def test_checkpoints_of_scores_are_told(self):
        mapping = {"epoch-1.keras": 1, "epoch-2.keras": 2, "z.keras": 3}
        (note,) = scores(scores=mapping, minimize=True).notes
        assert note == "the mapping: z.keras: not among the checkpoints given, not used."


class TestNotANumber:
    @pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
    def test_is_refused_in_a_name(self, text):
        paths = [Path("1-0.5.h5"), Path(f"2-{text}.h5".replace("--", "---"))]
        with pytest.raises(OptionError, match=r"its score is -?(nan|inf)\. Leave that checkpoint"):
            scores(paths, scores="filename", minimize=True)

    @pytest.mark.parametrize("text", ["nan", "inf"])
    def test_is_refused_in_a_file(self, table, text):
        with pytest.raises(OptionError, match=f"loss is {text}, expected a finite number"):
            scores(scores=table(f"epoch,loss\n0,{text}\n1,0.5\n"))
