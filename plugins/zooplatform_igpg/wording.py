"""The words that instructions are made of, by what they say.

Every phrase of a data set says that one, except those of a group (`digits`), which say one of the group.
"""

from __future__ import annotations

import re

__all__ = [
    "ACTIVATIONS",
    "ARTICLES",
    "BY_KIND",
    "DATASETS",
    "FILLERS",
    "GROUPS",
    "HIGH",
    "LARGE",
    "LOW",
    "NOISE",
    "OPENINGS",
    "SMALL",
    "TASKS",
    "known_name",
]

DATASETS: dict[str, tuple[str, ...]] = {
    "mnist": (
        "mnist", "MNIST", "mnist digits", "the mnist data set", "mnist images", "MNIST handwriting",
        "handwritten numbers", "handwritten digits 0 to 9", "hand-drawn numbers", "scanned handwritten digits",
        "digits written by hand", "numerals in handwriting", "handwriting of numbers",
        "pen-written figures zero to nine",
        "numbers people wrote by hand", "LeCun's digits", "the classic digit benchmark",
        "centred handwritten numerals",
    ),
    "fashion": (
        "fashion", "fashion-mnist", "Fashion MNIST", "fashion items", "fashion articles", "clothes", "clothing",
        "items of clothing", "garments", "apparel", "shirts and shoes", "t-shirts, trousers and bags",
        "sneakers and boots",
        "dresses and coats", "pullovers, shirts and sandals", "wardrobe items", "outfits", "Zalando articles",
        "pictures of clothes", "what people wear", "handbags, ankle boots and sneakers", "textiles and footwear",
        "clothing photos", "fashion products", "wear: tops, dresses, coats, shoes", "a fashion shop's catalogue",
        "jackets and jumpers", "accessories and garments", "clothes and shoes", "shoe and shirt pictures",
    ),
    "usps": (
        "usps", "USPS", "usps digits", "postal digits", "postcodes", "zip codes", "zip code digits",
        "digits on envelopes",
        "mail sorting", "postal service numbers", "numbers from letters in the mail", "post office digits",
        "digits of the United States Postal Service", "addresses on mail", "envelope numerals", "postal codes",
        "scanned mail", "letter sorting at the post office",
    ),
    "pendigits": (
        "pendigits", "pen digits", "penbased", "pen-based digits", "digits drawn with a pen on a tablet",
        "stylus strokes",
        "pen trajectories", "digits from a pressure sensitive tablet", "online handwriting", "strokes of a pen",
        "tablet-written numbers", "digits traced with a stylus", "pen movements", "digital ink", "digitiser strokes",
    ),
    "optdigits": (
        "optdigits", "optical digits", "optical recognition of handwritten digits", "8x8 digits",
        "low resolution digits",
        "tiny digit images", "coarse digit bitmaps", "digits of eight by eight pixels", "the UCI optical digits",
        "form-scanned digits", "blocky digits",
    ),
    "digits": (
        "digits", "sklearn digits", "scikit-learn's digits", "the digits data set", "8 by 8 digits", "load_digits",
        "small digit images", "handwritten digits of 8x8 pixels", "digit images", "the little digits", "numerals",
    ),
    "cifar10": (
        "cifar10", "CIFAR-10", "cifar", "natural images", "grey natural images", "photos of objects", "photographs",
        "airplanes, cars and birds", "animals and vehicles", "cats, dogs and trucks", "frogs, horses and ships",
        "real-world photos", "objects in the wild", "small natural pictures", "ten kinds of everyday objects",
        "grayscale photos", "pictures of animals", "vehicle and animal pictures", "natural scenes",
    ),
    "svhn": (
        "svhn", "SVHN", "street view house numbers", "house numbers", "numbers on houses", "digits in street photos",
        "door numbers", "street numbers", "house number plates",
    ),
    "stl10": ("stl10", "STL-10", "stl", "natural pictures of ten classes", "STL images", "larger natural images"),
    "kmnist": ("kmnist", "Kuzushiji", "kuzushiji-mnist", "cursive Japanese characters", "hiragana",
    "old Japanese script"),
    "notmnist": ("notmnist", "letters A to J", "printed letters", "glyphs of fonts", "letters in many fonts",
    "typefaces"),
    "emnist": ("emnist", "handwritten letters", "the alphabet in handwriting", "letters written by hand",
    "characters"),
}  # fmt: skip

# A phrase of a group says one of its data sets. The first is meant somewhat more often than the others.
GROUPS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("mnist", "digits", "usps", "pendigits", "optdigits", "svhn"): (
        "digits", "numbers", "numerals", "figures", "digit recognition", "reading numbers", "digit classification",
        "ten digits", "0-9", "number images", "recognising digits",
    ),
    ("mnist", "usps", "optdigits", "digits", "pendigits"): (
        "handwritten digits", "handwritten numbers", "handwriting", "hand-written digits", "written numbers",
    ),
    ("cifar10", "stl10"): ("photos", "natural pictures", "real photos", "objects"),
    ("emnist", "notmnist", "kmnist"): ("letters", "alphabet", "characters", "symbols"),
}  # fmt: skip

BY_KIND: dict[str, tuple[str, ...]] = {
    "cnn": (
        "CNN", "convolutional network", "convolutional neural network", "convnet", "conv net", "ConvNet",
        "convolutional classifier", "plain CNN", "network of convolutions", "convolutional model",
        "LeNet-like network",
    ),
    "resnet": (
        "ResNet", "residual network", "network with skip connections", "resnet classifier", "residual CNN",
        "network of residual blocks", "deep residual network", "net with shortcuts", "ResNet with batch norm",
    ),
    "mlp": (
        "MLP", "multi-layer perceptron", "fully connected network", "dense network", "feed-forward network",
        "perceptron",
        "fully-connected net", "network of linear layers", "plain dense classifier",
    ),
    "transformer": ("transformer", "vision transformer", "ViT", "attention network", "self-attention model"),
    "other": ("network", "model"),
}  # fmt: skip

ANY_KIND = (
    "network",
    "neural network",
    "net",
    "model",
    "classifier",
    "neural net",
    "image classifier",
)

SMALL = ("small", "tiny", "little", "compact", "lightweight", "mini", "minimal", "slim", "short")
LARGE = ("large", "big", "deep", "huge", "heavy", "wide", "long", "high-capacity", "bigger")

HIGH = (
    "accurate", "highly accurate", "good", "strong", "well trained", "excellent", "precise", "very good", "top",
    "high accuracy", "best possible", "state of the art", "fully trained", "reliable", "high-quality",
)  # fmt: skip
LOW = (
    "weak", "poor", "barely trained", "undertrained", "mediocre", "low accuracy", "bad", "half-trained", "inaccurate",
)  # fmt: skip

ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "relu": ("relu", "ReLU", "rectified linear units", "rectifiers", "relu units"),
    "leaky_relu": ("leaky relu", "LeakyReLU", "leaky rectifiers", "leaky_relu", "leaky units"),
    "gelu": ("gelu", "GELU", "gaussian error linear units", "gelu units"),
    "silu": ("silu", "SiLU", "swish", "sigmoid linear units", "swish units"),
    "tanh": ("tanh", "hyperbolic tangent", "tanh units", "tangens hyperbolicus"),
    "sigmoid": ("sigmoid", "logistic units", "sigmoidal units", "logistic function"),
    "elu": ("elu", "ELU", "exponential linear units"),
    "sine": ("sine", "sin", "siren", "periodic activations", "sinusoidal units"),
}

OPENINGS = (
    "", "", "", "generate", "give me", "I need", "I want", "make", "make me", "write", "create", "please write",
    "produce the weights of", "weights for", "weights of", "build", "we need", "draw", "sample", "design", "propose",
    "could you generate", "can I have", "looking for", "train-free:", "initialise", "set up", "wanted:",
    "find me", "get",
)  # fmt: skip
ARTICLES = ("a", "a", "a", "an", "the", "some", "one", "another", "any", "")

TASKS = (
    "for {x}", "for {x}", "for {x}", "trained on {x}", "fitted on {x}", "that classifies {x}", "to classify {x}",
    "to recognise {x}", "that recognizes {x}", "which tells {x} apart", "for telling apart {x}", "for images of {x}",
    "for pictures of {x}", "on {x}", "for classifying {x}", "for the recognition of {x}", "that can read {x}",
    "which knows {x}", "working on {x}", "for the task of {x}", "whose inputs are {x}", "that sorts {x}",
    "able to handle {x}", "specialised in {x}", "about {x}", "data: {x}", "dataset {x}", "used with {x}", "in {x}",
)  # fmt: skip

FILLERS = (
    "robust to small images", "fast at inference", "for my phone", "please", "as soon as possible",
    "that runs on a CPU",
    "with few parameters", "for a demo", "for an embedded device", "which generalises well",
    "that is easy to fine-tune",
    "ready to use", "with ten classes", "for small images", "of low resolution", "for grey images",
    "with little memory",
    "for teaching", "for production", "that is robust to noise", "without bells and whistles", "thank you", "today",
    "for a student project", "that needs no training", "quickly", "for a benchmark", "with some diversity",
    "unlike the others", "from scratch", "of good character", "for an experiment", "that others can build on",
    "with a random seed", "for edge devices", "that fits in a cache", "at 16x16 pixels", "for 28x28 images",
)  # fmt: skip

# Words that say nothing about networks: texts of them alone must not be taken for an instruction that says something.
NOISE = (
    "maize", "leaf", "disease", "plant", "forest", "river", "traffic", "sign", "medical", "scan", "brain",
    "tumour", "satellite", "roof", "music", "piano", "genre", "violin", "poem", "summary", "translate", "French",
    "German", "question", "answer", "stock", "market", "price", "weather", "rain", "forecast", "protein",
    "molecule", "drug", "chess", "robot", "arm", "kitchen", "recipe", "soup", "pizza", "football", "player",
    "team", "score", "election", "policy", "law", "contract", "history", "castle", "planet", "galaxy", "star",
    "telescope", "engine", "wheel", "bridge", "road", "map", "compass", "ocean", "fish", "whale", "shark", "coral",
    "beach", "bird", "song", "voice", "speaker", "accent", "video", "frame", "motion", "depth", "camera", "lens",
    "flower", "rose", "tulip", "garden", "insect", "beetle", "butterfly", "bacteria", "cell", "tissue", "x-ray",
    "lung", "heart", "bone", "tooth", "eye", "retina", "skin", "lesion", "fungus", "mushroom", "apple", "orange",
    "banana", "bread", "coffee", "tea", "wine", "beer", "bottle", "glass", "table", "chair", "sofa", "bed", "lamp",
    "door", "window", "wall", "floor", "ceiling", "elevator", "train", "station", "ticket", "passport", "hotel",
    "email", "spam", "sentiment", "review", "movie", "actor", "theatre", "painting", "museum", "sculpture",
    "graph", "node", "edge", "time", "series", "sensor", "vibration", "fault", "turbine", "battery", "solar",
    "wind", "power", "grid", "building", "bank", "loan", "fraud", "customer", "churn", "purple", "happy", "tired",
    "mountain", "holiday", "random", "hello", "world", "lorem", "ipsum", "dolor", "amet", "consectetur",
)  # fmt: skip


def known_name(name: str) -> str:
    """The key of `DATASETS` for the name of a data set as a zoo has it (`Fashion-MNIST`, `mnist16`), or the name."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if "fashion" in plain:
        return "fashion"
    for key in sorted(DATASETS, key=len, reverse=True):
        if plain == key or plain.startswith(key) or plain.endswith(key):
            return key
    return name
