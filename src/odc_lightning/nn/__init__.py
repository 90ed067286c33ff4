"""Networks: backbones with named taps, the neck, the classifier, and what happens to an image before them."""

from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.head import NonLinearNeck, linear_classifier
from odc_lightning.nn.network_input import network_input
from odc_lightning.nn.normalize import Normalize
from odc_lightning.nn.sobel import Sobel

__all__ = ["Backbone", "NonLinearNeck", "Normalize", "Sobel", "linear_classifier", "network_input"]
