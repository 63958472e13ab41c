"""COCO's evaluation of detections, by pycocotools."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ndkd.errors import NdkdError

SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first numbers of COCO's twelve


def coco_ap(file: str | Path, rows: list[dict[str, Any]], image_ids: Sequence[int]) -> dict[str, float]:
    """COCO's average precision (0 to 1; -1 where there is nothing) over the images: of all classes, by size, per class.

    Args:
        file: what is there, in COCO's format; ``iscrowd`` and ``area`` may be missing.
        rows: detections, as in COCO's results.
        image_ids: of the images that were looked at.

    Raises:
        NdkdError: pycocotools is missing.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise NdkdError("COCO's evaluation needs pycocotools: python -m pip install 'ndkd[coco]'") from error
    content = json.loads(Path(file).read_bytes())
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(content, content["annotations"]), _indexed(content, rows), "bbox")
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: float(value) for name, value in zip(SUMMARY, evaluation.stats, strict=False)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class)
    names = _names(content["categories"])
    for k, category in enumerate(evaluation.params.catIds):
        known = precision[:, :, k][precision[:, :, k] > -1]
        values[f"ap/{names[category]}"] = float(known.mean()) if len(known) else -1.0
    return values


def _indexed(content: dict[str, Any], boxes: list[dict[str, Any]]) -> Any:
    """Boxes as pycocotools wants them: numbered from 1, since it takes a match with number 0 for none."""
    from pycocotools.coco import COCO

    found = COCO()
    found.dataset = {name: content[name] for name in ("images", "categories")}
    found.dataset["annotations"] = [{**box, **_completed(box), "id": number} for number, box in enumerate(boxes, 1)]
    found.createIndex()
    return found


def _completed(box: dict[str, Any]) -> dict[str, Any]:
    """What a file may leave out."""
    area = box.get("area")
    return {"iscrowd": box.get("iscrowd") or 0, "area": box["bbox"][2] * box["bbox"][3] if area is None else area}


def _names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """The names of categories, with the id where two have the same."""
    times = Counter(category["name"] for category in categories)
    return {
        category["id"]: f"{category['name']} ({category['id']})" if times[category["name"]] > 1 else category["name"]
        for category in categories
    }
