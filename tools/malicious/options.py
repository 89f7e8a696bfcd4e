"""Option files and matrices: YAML."""

from __future__ import annotations

import random

from malicious.ground import Case, Ground


def yaml_texts(ground: Ground, rng: random.Random) -> dict[str, str]:
    good = ground.option_file
    command = f"touch {ground.marker}"
    tag = rng.choice(("python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"))
    depth, wide = rng.randint(2000, 20000), rng.randint(9, 12)
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, wide)
    )
    return {
        "code": good + f"evil: !!{tag} ['{command}']\n",
        "module": good + "evil: !!python/module:antigravity\n",
        "laughs": laughs + good,
        "itself": "a: &a [*a]\n" + good,
        "merged": "a: &a {b: &b {<<: *a}}\n" + good,
        "deep": good + "deep: " + "[" * depth + "]" * depth + "\n",
        "deep block": good + "".join(f"{' ' * i}d:\n" for i in range(rng.randint(1100, 1400))),
        "long": good + "x: " + "9" * 2**21 + "\n",
        "number": good.replace("total_iter: ", "total_iter: " + "9" * 5000, 1),
        "date": good + "x: 2001-99-99\n",
        "binary": good + "x: !!binary '###'\n",
        "key": good + rng.choice(("1: 2\n", "[1, 2]: 3\n", "{a: b}: c\n", "~: 1\n", "2001-01-01: 2\n")),
        "name": good.replace("name: student1_csd", "name: " + rng.choice(("../../out", "/tmp/out", "a/../../b")), 1),
        "null": good.replace("name: ", 'name: "\\0" #', 1),
        "bytes": good + "\0",
        "list": "- " + good.replace("\n", "\n  "),
        "wrong": good.replace("network_g:", rng.choice(("network_g: 3\nx:", "network_g: []\nx:")), 1),
        "infinite": good.replace("lr: !!float 1e-4", "lr: .inf", 1),
        "huge": good.replace("preset: student1", "preset: student1\n  num_feat: 1000000000", 1),
    }


def option_files(ground: Ground, rng: random.Random) -> Case:
    texts = yaml_texts(ground, rng)
    name = rng.choice(list(texts))
    file = ground.fresh() / "options.yml"
    file.write_text(texts[name], encoding="utf-8")
    return Case(f"options: {name}", ["inspect", str(file)], ground.bad)


def matrices(ground: Ground, rng: random.Random) -> Case:
    texts = yaml_texts(ground, rng)
    row = {"runs": f"runs: {rng.choice(('..', '../x', '/x'))}\n", "title": "title: 3\n", "include": "include: [/etc]\n"}
    texts = {name: text.replace(ground.option_file, ground.matrix) for name, text in texts.items()} | {
        name: ground.matrix + text for name, text in row.items()
    }
    name = rng.choice([name for name in texts if texts[name] != ground.matrix])
    file = ground.fresh() / "matrix.yml"
    file.write_text(texts[name], encoding="utf-8")
    return Case(f"matrix: {name}", ["table", str(file), "--dry-run"], ground.bad)
