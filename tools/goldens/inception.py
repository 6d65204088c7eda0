"""FID's Inception v3 with random weights that tests and scripts make alike, and the networks of the usual evaluators around it.

The weights follow from a seed by torch's generator, one tensor after the other in the order of the module's convolutions, so that
24 million numbers need not be stored: `tests/evaluate.rs` draws the same ones.
"""
import contextlib
import io

import torch
import torchvision
from pytorch_fid import inception as pytorch_fid

SEED = 20151205


def convolutions(network):
    return [(name, module) for name, module in network.named_modules() if isinstance(module, torchvision.models.inception.BasicConv2d)]


@torch.no_grad()
def randomise(network, seed=SEED):
    """He's deviation keeps the scale of activations; every vector of BatchNorm differs from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for _, module in convolutions(network):
        weight = module.conv.weight
        weight.copy_(torch.randn(weight.numel(), generator=generator).reshape(weight.shape) * (2 / weight[0].numel()) ** 0.5)
        count = weight.shape[0]
        module.bn.weight.copy_(torch.randn(count, generator=generator) * 0.2 + 1)
        module.bn.bias.copy_(torch.randn(count, generator=generator) * 0.2)
        module.bn.running_mean.copy_(torch.randn(count, generator=generator) * 0.2)
        module.bn.running_var.copy_(torch.randn(count, generator=generator).abs() * 0.5 + 0.5)
    return network.eval()


def state(seed=SEED):
    """The state of pytorch-fid's network, as its file of weights has it."""
    kept = pytorch_fid.load_state_dict_from_url
    made = {}

    def instead_of_download(*_, **__):
        blank = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
        made.update({k: v.clone() for k, v in randomise(blank, seed).state_dict().items()})
        return made

    pytorch_fid.load_state_dict_from_url = instead_of_download
    try:
        pytorch_fid.fid_inception_v3()
    finally:
        pytorch_fid.load_state_dict_from_url = kept
    return made


def network(dims, state):
    """pytorch-fid's network up to `dims` channels."""
    kept = pytorch_fid.load_state_dict_from_url
    pytorch_fid.load_state_dict_from_url = lambda *_, **__: state
    try:
        blocks = [pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[dims]]
        return pytorch_fid.InceptionV3(blocks).eval()
    finally:
        pytorch_fid.load_state_dict_from_url = kept


def torchmetrics_network(dims, path):
    """torchmetrics' extractor with the weights in the file at `path`."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    with contextlib.redirect_stdout(io.StringIO()):
        return NoTrainInceptionV3(name="inception-v3-compat", features_list=[str(dims)], feature_extractor_weights_path=str(path))


class Conv2dLayer(torch.nn.Module):
    """A convolution of the TorchScript module that clean-fid reads: BatchNorm without scale."""

    def __init__(self, convolution, bn):
        super().__init__()
        # A scale that is not stored is folded into the weights; the shift then carries the mean, too.
        self.weight = torch.nn.Parameter(convolution.weight.detach().clone())
        for name, value in [("beta", bn.bias), ("mean", bn.running_mean), ("var", bn.running_var)]:
            self.register_buffer(name, value.detach().clone())
        self.stride, self.padding = list(convolution.stride), list(convolution.padding)

    def forward(self, x):
        x = torch.nn.functional.conv2d(x, self.weight, None, self.stride, self.padding)
        return torch.relu(torch.nn.functional.batch_norm(x, self.mean, self.var, None, self.beta, False, 0.0, 0.001))


TOWERS = dict(
    a=dict(conv="branch1x1", tower=["branch5x5_1", "branch5x5_2"], tower_1=["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], tower_2=["pool", "branch_pool"]),
    b=dict(conv="branch3x3", tower=["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], pool="max"),
    c=dict(conv="branch1x1", tower=[f"branch7x7_{i}" for i in (1, 2, 3)], tower_1=[f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)], tower_2=["pool", "branch_pool"]),
    d=dict(tower=["branch3x3_1", "branch3x3_2"], tower_1=[f"branch7x7x3_{i}" for i in (1, 2, 3, 4)], pool="max"),
)


class Towers(torch.nn.Module):
    def __init__(self, block, kind):
        super().__init__()
        layer = lambda name: Conv2dLayer(getattr(block, name).conv, getattr(block, name).bn)
        branches = []
        for name, steps in TOWERS[kind].items():
            if steps == "max":
                made = torch.nn.MaxPool2d(3, 2)
            elif isinstance(steps, str):
                made = layer(steps)
            else:
                made = torch.nn.Sequential()
                for step in steps:
                    if step == "pool":
                        made.add_module("pool", torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False))
                    else:
                        number = sum(key.startswith("conv") for key in made._modules)
                        made.add_module(f"conv_{number}" if number else "conv", layer(step))
            self.add_module(name, made)
            branches.append(name)
        self.branches = branches

    def forward(self, x):
        return torch.cat([module(x) for module in self.children()], 1)


class Last(torch.nn.Module):
    def __init__(self, block, pool):
        super().__init__()
        names = dict(
            tower_conv="branch3x3_1", tower_1_conv="branch3x3dbl_1", tower_1_conv_1="branch3x3dbl_2", conv="branch1x1",
            tower_mixed_conv="branch3x3_2a", tower_mixed_conv_1="branch3x3_2b", tower_1_mixed_conv="branch3x3dbl_3a", tower_1_mixed_conv_1="branch3x3dbl_3b",
            tower_2_conv="branch_pool",
        )
        for name, ours in names.items():
            self.add_module(name, Conv2dLayer(getattr(block, ours).conv, getattr(block, ours).bn))
        self.tower_2_pool = pool

    def forward(self, x):
        a, b = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        towers = [self.tower_mixed_conv(a), self.tower_mixed_conv_1(a), self.tower_1_mixed_conv(b), self.tower_1_mixed_conv_1(b)]
        return torch.cat([self.conv(x), *towers, self.tower_2_conv(self.tower_2_pool(x))], 1)


class Script(torch.nn.Module):
    """The names and the layout of `inception-2015-12-05.pt`, as far as its users tell them."""

    def __init__(self, source):
        super().__init__()
        layers = torch.nn.Sequential()
        layer = lambda module: Conv2dLayer(module.conv, module.bn)
        layers.add_module("conv", layer(source.Conv2d_1a_3x3))
        layers.add_module("conv_1", layer(source.Conv2d_2a_3x3))
        layers.add_module("conv_2", layer(source.Conv2d_2b_3x3))
        layers.add_module("pool0", torch.nn.MaxPool2d(3, 2))
        layers.add_module("conv_3", layer(source.Conv2d_3b_1x1))
        layers.add_module("conv_4", layer(source.Conv2d_4a_3x3))
        layers.add_module("pool1", torch.nn.MaxPool2d(3, 2))
        blocks = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
        for number, (name, kind) in enumerate(zip(blocks, "aaabccccdee")):
            block = getattr(source, f"Mixed_{name}")
            if kind == "e":
                pool = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False) if name == "7b" else torch.nn.MaxPool2d(3, 1, 1)
                made = Last(block, pool)
            else:
                made = Towers(block, kind)
            layers.add_module(f"mixed_{number}" if number else "mixed", made)
        layers.add_module("pool2", torch.nn.AvgPool2d(8, 8))
        self.layers = layers
        self.output = torch.nn.Linear(2048, 1008)

    def forward(self, x):
        return self.output(self.layers(x).flatten(1))


def script(seed=SEED):
    """The same weights as a TorchScript module, with every scale of BatchNorm 1."""
    source = randomise(torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False), seed)
    with torch.no_grad():
        for _, module in convolutions(source):
            module.bn.weight.fill_(1)
    return torch.jit.trace(Script(source).eval(), torch.zeros(1, 3, 299, 299)), source
