"""The names that clip-benchmark 1.6.2 knows, as literals: looking one up imports nothing.

`tests/test_datasets_zoo.py` compares them with the installed clip-benchmark, so that drift is seen.
"""

from __future__ import annotations

_VTAB = [
    "vtab/caltech101",
    "vtab/cifar100",
    "vtab/clevr_count_all",
    "vtab/clevr_closest_object_distance",
    "vtab/diabetic_retinopathy",
    "vtab/dmlab",
    "vtab/dsprites_label_orientation",
    "vtab/dsprites_label_x_position",
    "vtab/dtd",
    "vtab/eurosat",
    "vtab/kitti_closest_vehicle_distance",
    "vtab/flowers",
    "vtab/pets",
    "vtab/pcam",
    "vtab/resisc45",
    "vtab/smallnorb_label_azimuth",
    "vtab/smallnorb_label_elevation",
    "sun397",
    "vtab/svhn",
]

_ROBUSTNESS = ["imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet"]

_SUGAR_CREPE = [
    "sugar_crepe/add_att",
    "sugar_crepe/add_obj",
    "sugar_crepe/replace_att",
    "sugar_crepe/replace_obj",
    "sugar_crepe/replace_rel",
    "sugar_crepe/swap_att",
    "sugar_crepe/swap_obj",
]

_VTAB_PLUS = [
    "imagenet1k",
    *_ROBUSTNESS,
    "fer2013",
    "voc2007",
    "voc2007_multilabel",
    "sun397",
    "cars",
    "fgvc_aircraft",
    "mnist",
    "stl10",
    "gtsrb",
    "country211",
    "renderedsst2",
    "vtab/caltech101",
    "vtab/cifar10",
    *[name for name in _VTAB[1:] if name != "sun397"],
]

COLLECTIONS: dict[str, list[str]] = {
    "vtab": _VTAB,
    "vtab+": _VTAB_PLUS,
    "retrieval": ["mscoco_captions", "flickr8k", "flickr30k"],
    "imagenet_robustness": _ROBUSTNESS,
    "sugar_crepe": _SUGAR_CREPE,
}

# Captions instead of classes.
RETRIEVAL = frozenset(
    {
        "flickr30k",
        "flickr8k",
        "mscoco_captions",
        "multilingual_mscoco_captions",
        "flickr30k-200",
        "crossmodal3600",
        "xtd10",
        "xtd200",
    }
)

# Captions to choose from.
CHOICES = frozenset({"winoground", *_SUGAR_CREPE})

# What `build_dataset` of clip-benchmark compares `dataset_name` with.
ZOO = RETRIEVAL | {
    "cifar10",
    "cifar100",
    "imagenet1k",
    "imagenet-w",
    "babel_imagenet",
    "imagenet1k-unverified",
    "imagenetv2",
    "imagenet_sketch",
    "imagenet-a",
    "imagenet-r",
    "imagenet-o",
    "objectnet",
    "voc2007",
    "voc2007_multilabel",
    "winoground",
    "food101",
    "sun397",
    "cars",
    "fgvc_aircraft",
    "dtd",
    "pets",
    "caltech101",
    "flowers",
    "mnist",
    "stl10",
    "eurosat",
    "gtsrb",
    "country211",
    "pcam",
    "renderedsst2",
    "fer2013",
    "dummy",
}


def known_names() -> list[str]:
    """Every name that `--dataset` may be, except `wds/…`, `tfds/…`, `folder:…` and list files."""
    vtab = {name for name in _VTAB + _VTAB_PLUS if name.startswith("vtab/")}
    return sorted({"bundled", *ZOO, *CHOICES, *COLLECTIONS, *vtab})


def default_task(name: str) -> str:
    """The task that `--task auto` means for a data set, as upstream's `get_dataset_default_task`."""
    short = name.removeprefix("wds/")
    if short in RETRIEVAL:
        return "zeroshot_retrieval"
    if short.startswith("sugar_crepe") or short == "winoground":
        return "image_caption_selection"
    return "zeroshot_classification"
