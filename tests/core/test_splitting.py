"""Any model as a body and a head."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparring import Classifier, UserError
from sparring.models import Layers, layers_of, small_cnn

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network of the user's own, with its last layer in the middle of its modules."""

    def __init__(self, last=nn.Identity):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.fc = nn.Linear(32, 5)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6 * 36, 32)
        self.last = last()

    def forward(self, x):
        z = F.relu(self.norm(self.conv(x))).flatten(1)
        return self.last(self.fc(F.relu(self.hidden(z))))


class Scaled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_model_is_split_before_its_last_linear_layer():
    torch.manual_seed(0)
    net = Net().eval()
    found = Classifier.split(net, X)
    assert torch.equal(found(X), net(X))
    assert found.head.in_features == 32
    assert found.features(X).shape == (3, 32)
    assert torch.equal(found.head(found.features(X)), net(X))
    found.head.weight.data.zero_()
    assert net.fc.weight.abs().sum() > 0, "the layers are copies"
    assert torch.equal(Classifier.split(net, X, at="fc")(X), net(X))
    ours = small_cnn(3, (1, 8, 8), width=2)
    assert Classifier.split(ours, X) is ours


def test_modes_stay_as_they_were():
    net = Net().train()
    net.norm.eval()
    found = Classifier.split(net, X)
    assert found.training
    assert found.head.training
    assert found.body.conv.training
    assert not found.body.norm.training
    assert torch.equal(net.norm.running_mean, torch.zeros(6)), "the check does not move statistics"


def test_what_cannot_be_split_is_refused_and_the_last_layers_are_named():
    with pytest.raises(UserError, match=r"no linear layer of Net gives its logits.*ran last: hidden, fc"):
        Classifier.split(Net(Scaled).eval(), X)
    with pytest.raises(UserError, match="Net cannot be split at 'hidden': the logits must be the output of that layer"):
        Classifier.split(Net().eval(), X, at="hidden")
    with pytest.raises(UserError, match="Net has no layer 'fx': did you mean fc"):
        Classifier.split(Net().eval(), X, at="fx")
    conv = nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten())
    with pytest.raises(UserError, match="no linear layer of Sequential gives its logits"):
        Classifier.split(conv, X)


def test_features_of_any_model_are_the_input_of_its_last_linear_layer():
    torch.manual_seed(0)
    net = Net().eval()
    features, conv = Layers(net, ("features", "conv"))(X)
    assert torch.equal(net.fc(features), net(X))
    assert conv.shape == (3, 6, 6, 6)
    assert layers_of(net)[0] == "features"
    x = X.clone().requires_grad_()
    Layers(net).first(x).sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(UserError, match="no linear layer of Net gives its logits"):
        Layers(Net(Scaled).eval()).first(X)
    own = nn.Sequential()
    own.add_module("features", nn.Flatten())
    own.add_module("head", nn.Linear(64, 3))
    assert torch.equal(Layers(own).first(X), X.flatten(1)), "a module of that name comes first"


def test_a_layer_that_is_called_by_keyword_is_seen():
    class Keyword(Net):
        def forward(self, x):
            return self.fc(input=F.relu(self.hidden(input=self.norm(self.conv(x)).flatten(1))))

    net = Keyword().eval()
    assert torch.equal(Classifier.split(net, X)(X), net(X))
