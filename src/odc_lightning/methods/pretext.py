"""What the pretext tasks share whose labels are what was done to the image: rotation, relative location, jigsaw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from odc_lightning.data.datamodule import DataModule
from odc_lightning.methods.base import Method
from odc_lightning.nn.backbone import Backbone
from odc_lightning.objective import weighted_cross_entropy


class Pretext(Method):
    """Cross-entropy of a question whose answer the method knows, and the share of right answers.

    A subclass asks in ``training_step`` and hands the scores to :meth:`judge`.

    Args:
        head_weight_decay: of everything but the backbone; None: as all others.
        backbone and the rest: see :class:`Method`.

    Raises:
        ValueError: head_weight_decay is negative.
    """

    _accuracy: Tensor

    def __init__(self, backbone: Backbone, *, head_weight_decay: float | None = None, **keys: Any) -> None:
        super().__init__(backbone, **keys)
        if head_weight_decay is not None and not head_weight_decay >= 0:
            raise ValueError(f"method.head_weight_decay must be null or at least 0. Received: {head_weight_decay}")
        self.head_weight_decay = head_weight_decay

    def judge(self, logits_QC: Tensor, answers_Q: Tensor, ok_Q: Tensor | None) -> Tensor:
        """Cross-entropy of Q questions with C possible answers.

        Args:
            logits_QC: scores.
            answers_Q: right ones, in [0, C).
            ok_Q: False for questions about images that could not be read; None: all are good.

        Returns: scalar; goes to ``train/loss``, and the accuracy to ``train/accuracy``.
        Raises: FloatingPointError for NaN or infinite values.
        """
        self._accuracy = accuracy(logits_QC.detach(), answers_Q, ok_Q)
        return self.watch(weighted_cross_entropy(logits_QC, answers_Q, mask_B=ok_Q))

    def finish_iteration(self) -> dict[str, Tensor | float]:
        return {**super().finish_iteration(), "train/accuracy": self._accuracy}

    def smallest_view(self, datamodule: DataModule) -> tuple[int, str]:
        """Side in pixels of what the backbone sees in training, and its name for a message."""
        return datamodule.image_size, "images (data.image_size)"

    def require_possible(self, datamodule: DataModule) -> None:
        super().require_possible(datamodule)
        self.backbone.require_size(*self.smallest_view(datamodule))

    def head(self) -> Sequence[nn.Module]:
        """Modules that only the pretext task needs."""
        raise NotImplementedError

    def parameter_groups(self) -> Any:
        if self.head_weight_decay is None:
            return self.parameters()
        head = [parameter for module in self.head() for parameter in module.parameters()]
        return [{"params": list(self.backbone.parameters())}, {"params": head, "weight_decay": self.head_weight_decay}]


def accuracy(logits_QC: Tensor, answers_Q: Tensor, ok_Q: Tensor | None = None) -> Tensor:
    """Share of the questions whose highest score is the right answer, among those with `ok_Q`; 0 if there is none."""
    right_Q = logits_QC.argmax(1) == answers_Q
    if ok_Q is None:
        return right_Q.float().mean()
    return (right_Q & ok_Q).sum() / ok_Q.sum().clamp(min=1)


def per_question(ok_B: Tensor | None, questions: int) -> Tensor | None:
    """What holds for an image holds for each of its questions: (B,) to (B * questions,), image by image."""
    return None if ok_B is None else ok_B.repeat_interleave(questions)
