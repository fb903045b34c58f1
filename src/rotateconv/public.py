"""The public names of the package, which imports this file when the first of them is used."""

from rotateconv.conv import RotateConv2d as RotateConv2d
from rotateconv.conversion_report import ConversionEntry as ConversionEntry
from rotateconv.conversion_report import ConversionReport as ConversionReport
from rotateconv.convert import convert as convert
from rotateconv.cost import ModelCost as ModelCost
from rotateconv.cost import cost as cost
from rotateconv.fit import LineFit as LineFit
from rotateconv.fit import fit_line as fit_line
from rotateconv.fusion import fuse as fuse
from rotateconv.kernel import line_kernel as line_kernel
from rotateconv.models import CONVS as CONVS
from rotateconv.models import MODELS as MODELS
from rotateconv.models import build_model as build_model
from rotateconv.models import equal_size_width as equal_size_width
from rotateconv.optim import param_groups as param_groups
from rotateconv.pack import load_packed as load_packed
from rotateconv.pack import pack as pack
from rotateconv.quantize import quantize as quantize
