"""Distillation and adversarial losses.

Where an original deviates from its paper, kd_jax computes the paper's loss; comments in the
families below describe the difference.
"""

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses import adversarial, feature, image, penalties, relation, response
from kd_jax.methods import sefa
from parity.golden import Family, File, Outputs, connector, oihw, with_gradients


def ganlosses(file: File) -> Outputs:
    real, fake = file["in/logits_real"], file["in/logits_fake"]
    # In these losses a discriminator's loss is a sum over real and fake scores. Where the originals
    # compute one of the two, kd_jax's other scores are set to values whose loss is zero.
    losses = {
        "hinge": (adversarial.hinge_d, adversarial.hinge_g, 1),
        "vanilla": (adversarial.minimax_d, adversarial.nonsaturating_g, 1),
        "lsgan": (adversarial.least_squares_d, adversarial.least_squares_g, 2),  # no 1/2
        "wgangp": (adversarial.wasserstein_d, adversarial.wasserstein_g, 1),
    }
    free = {"hinge": (2, -2), "vanilla": (1e3, -1e3), "lsgan": (1, 0), "wgangp": (0, 0)}
    originals = [f"ganloss_{name}" for name in losses] + ["biggan_hinge", "biggan_dcgan"]
    outputs: dict[str, object] = {}
    for original in originals:
        name = original.split("_")[1].replace("dcgan", "vanilla")
        d, g, times = losses[name]
        free_real, free_fake = (jnp.full_like(real, score) for score in free[name])
        nonsaturating = "(nonsat)" if original == "biggan_dcgan" else ""
        for part, scores, fn in (
            ("d_real", real, lambda s, d=d, fake=free_fake: d(s, fake)),
            ("d_fake", fake, lambda s, d=d, real=free_real: d(real, s)),
            (f"g{nonsaturating}", fake, g),
        ):
            argument = "arg1" if original.startswith("biggan") and part == "d_real" else "arg0"
            outputs |= with_gradients(
                f"{original}_{part}",
                lambda a, fn=fn, t=times, k=argument: t * fn(a[k]).mean(),
                {argument: scores},
            )
    layers = file.config["critic"].split(";")[0].split("-")
    weights = {k.removeprefix("sd/"): file.arrays[k] for k in file if k.startswith("sd/")}
    images = {"real": file["in/img_real"], "fake": file["in/img_fake"]}
    alpha = file["in/alpha"].reshape(-1, 1, 1, 1)
    images["mixed"] = alpha * images["real"] + (1 - alpha) * images["fake"]
    for key in file:
        if match := re.fullmatch(r"out/(gp_(\w+?))_c([\d.]+)_l([\d.]+)", key):
            x, target, weight = images[match[2]], float(match[3]), float(match[4])

            def penalty(weights, x=x, target=target, weight=weight):
                # Interpolation between an image and itself gives that image.
                score, key = critic(layers, weights), jax.random.key(0)
                return weight * penalties.gradient_penalty(score, x, x, key, target).mean()

            value, gradients = jax.value_and_grad(penalty)(weights)
            outputs[key] = value
            outputs |= {f"out/grad/{match[1]}/{k}": g for k, g in gradients.items()}
            slopes = jax.grad(lambda x: critic(layers, weights)(x)[0].sum())(x)
            outputs[f"out/{match[1]}_inputgrads"] = slopes.transpose(0, 3, 1, 2).reshape(len(x), -1)
        elif match := re.fullmatch(r"out/grad/(ortho([\d.e-]+))/(.*)", key):
            kernel = file.arrays[f"sd/{match[3]}"]
            last = np.moveaxis(kernel, 0, -1)
            gradient = jax.grad(penalties.orthogonal)({"kernel": last})["kernel"]
            outputs[key] = float(match[2]) * np.moveaxis(np.asarray(gradient), -1, 0)
    return outputs


def critic(layers: list[str], weights: Mapping[str, object]) -> Callable:
    """The critic of the file, built from its textual description."""

    def score(x):
        for index, layer in enumerate(layers):
            if layer.startswith("LReLU"):
                x = jax.nn.leaky_relu(x, float(layer.removeprefix("LReLU")))
                continue
            stride = int((re.search(r",s(\d+)", layer) or [0, 1])[1])
            pad = int((re.search(r",p(\d+)", layer) or [0, 0])[1])
            x = jax.lax.conv_general_dilated(
                x,
                weights[f"{index}.weight"],
                (stride, stride),
                [(pad, pad)] * 2,
                dimension_numbers=("NHWC", "OIHW", "NHWC"),
            )
            x = x + weights[f"{index}.bias"].reshape(1, 1, 1, -1)
        return x.sum(axis=(1, 2, 3)), {}

    return score


def distill_mapping(file: File) -> Outputs:
    students, teachers = file.numbered("in/S"), file.numbered("in/T")
    adapt = [connector(file, f"netA{i}") for i in range(len(students))]
    features = {f"S{i}": s for i, s in enumerate(students)}

    def layers(fn):
        return [lambda a, i=i: fn(i, a[f"S{i}"], teachers[i]) for i in range(len(students))]

    mapped = layers(lambda i, s, t: feature.l2(adapt[i](s), t).mean())
    means = layers(lambda i, s, t: feature.channel_means(adapt[i](s), t).mean())
    aligned = layers(lambda i, s, t: relation.kernel_alignment(s, t))
    outputs = {}
    for name, fns in (("gancompression", mapped), ("omgd_CD", means), ("cat_ka", aligned)):
        outputs |= with_gradients(name, lambda a, fns=fns: sum(fn(a) for fn in fns), features)
    outputs["out/gancompression_distill"] = outputs.pop("out/gancompression")
    outputs["out/cat_mse"] = outputs["out/gancompression_distill"]
    for i, (l2, alignment) in enumerate(zip(mapped, aligned, strict=True)):
        outputs[f"out/gancompression_distill_layer{i}"] = l2(features)
        outputs[f"out/cat_KA_layer{i}"] = -alignment(
            features
        )  # the original returns the alignment itself
    return outputs


def distill_omgd(file: File) -> Outputs:
    described = file.config["vgg_stub"]
    strides, pads = (
        [int(n) for n in re.search(rf"{word} ([\d,]+)", described)[1].strip(",").split(",")]
        for word in ("stride", "padding")
    )
    kernels = [oihw(k) for k in file.numbered("in/vggW")]
    weights = file.config["weights"]

    def maps(x):
        x, features = (x + 1) / 2, []
        for kernel, stride, pad in zip(kernels, strides, pads, strict=True):
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride,) * 2,
                [(pad, pad)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x)
            features.append(x)
        return features

    def parts(student, teacher):
        ours, theirs = maps(student), maps(teacher)
        return {
            # The original uses the SSIM constants for images whose values span 1.
            "SSIM": image.structural(student, teacher, data_range=1.0).mean(),
            "style": sum(image.style(s, t).mean() for s, t in zip(ours, theirs, strict=True)),
            "feature": feature.l1(ours[1], theirs[1]).mean(),
            "tv": image.total_variation(student).sum(),
        }

    def total(a):
        both = (file["in/Tfake_w"], file["in/Tfake_d"])
        return sum(
            weights[k] * v for teacher in both for k, v in parts(a["Sfake"], teacher).items()
        )

    student, teacher = file["in/Sfake"], file["in/Tfake_w"]
    outputs = with_gradients("omgd_student", total, {"Sfake": student})
    outputs["out/omgd_student_total"] = outputs.pop("out/omgd_student")
    for name, value in parts(student, file["in/Tfake_d"]).items():
        outputs[f"out/omgd_last_{name}"] = weights[name] * value
    each = image.ssim(student, teacher, data_range=1.0)
    outputs |= {"out/ssim_T1": each.mean(), "out/ssim_T1_per_image": each}
    for name in file:
        if match := re.fullmatch(r"out/ssim_w(\d+)", name):
            outputs[name] = image.ssim(
                student, teacher, window=int(match[1]), data_range=1.0
            ).mean()
        elif match := re.fullmatch(r"out/ssim_window(\d+)_1d", name):
            outputs[name] = image.gaussian_window(int(match[1]), 1.5)
    for i, map_ in enumerate(maps(teacher)):
        outputs[f"out/gram_T1_{i}"] = image.gram_matrix(map_)
    return outputs


def distill_stylekd(file: File) -> Outputs:
    batch, layers = file.config["batch"], [i - 1 for i in file.config["mimic_layer"]]
    ours, theirs = file.numbered("in/student_feat"), file.numbered("in/teacher_feat")
    images = list(
        zip(file.numbered("in/student_img"), file.numbered("in/teacher_img"), strict=True)
    )
    style = jnp.abs(file["in/student_w"] - file["in/teacher_w"]).mean()
    losses = {"kl": relation.direction_kl, "mse": relation.direction_l2}
    outputs: dict[str, object] = {}
    for kind, loss in losses.items():
        for single in (0, 1):

            def total(a, loss=loss, single=single):
                # Without the perturbed half, both views are of the same images.
                other = slice(None, batch) if single else slice(batch, None)
                return sum(
                    loss(
                        a[f"sf{i}"][:batch], a[f"sf{i}"][other], theirs[i][:batch], theirs[i][other]
                    )
                    for i in layers
                )

            name = f"simi_{kind}_single{single}"
            outputs |= with_gradients(name, total, {f"sf{i}": ours[i] for i in layers})
            simi = outputs.pop(f"out/{name}")
            for output, pairs in (("Output_Only", images[-1:]), ("Intermediate", images)):
                l1 = sum(response.l1(s, t).mean() for s, t in pairs)
                outputs[f"out/{output}/{kind}/single{single}"] = jnp.stack(
                    [l1, jnp.zeros(()), simi, style]
                )
    weights = file.numbered("in/mod_weight")
    selected = [weights[2 * i - 2 : 2 * i] for i in file.config["directions_mimic_layer"]]
    for name, groups in (("split", selected), ("global", [weights])):
        # Order and sign of eigenvectors from NumPy's `eig` are arbitrary; ours are sorted.
        directions = np.concatenate([sefa.sefa_directions(group) for group in groups])
        theirs_ = file[f"out/directions_{name}"]
        rows = theirs_ if np.allclose(np.linalg.norm(theirs_, axis=1), 1, atol=1e-4) else theirs_.T
        products = directions @ rows.T
        best = np.abs(products).argmax(axis=0)
        signs = np.sign(products[best, np.arange(len(rows))])
        matched = directions[best] * signs[:, None]
        outputs[f"out/directions_{name}"] = matched if rows is theirs_ else matched.T
    return outputs


def distill_tinygan(file: File) -> Outputs:
    odd = [i for i in range(len(file.numbered("in/fake"))) if i % 2]
    weights = file.config["weights"]

    def matching(a):
        return sum(
            weight * feature.l1(a[f"fake{i}"], file[f"in/real{i}"]).mean()
            for weight, i in zip(weights, odd, strict=False)  # further weights are not used
        )

    fakes = {f"fake{i}": file[f"in/fake{i}"] for i in odd}
    real, fake = file["in/dis_real"], file["in/dis_fake"]
    free = jnp.full_like(real, 2.0)
    return with_gradients("feature_matching", matching, fakes) | {
        "out/pixel_l1": response.l1(file["in/x_fake"], file["in/x_real"]).mean(),
        "out/d_hinge": jnp.stack(
            [adversarial.hinge_d(real, -free).mean(), adversarial.hinge_d(free, fake).mean()]
        ),
        "out/g_hinge": adversarial.hinge_g(fake).mean(),
    }


def distill_torchdistill(file: File) -> Outputs:
    logits, teacher = file["in/s_logits"], file["in/t_logits"]
    labels = file["in/targets"].astype(np.int32)
    students, teachers = file.numbered("in/fs"), file.numbered("in/ft")
    same, batch = file.numbered("in/fsame"), len(logits)
    on_layer = dict(enumerate(students))

    def attention(loss):
        return lambda a: sum((i + 1) * loss(a[str(i)], t).mean() for i, t in enumerate(teachers))

    def flow(a):
        # The original takes the norm over the first layer's channels and sums over the second's.
        pairs = [feature.flow_matrix(a["0"], a["1"]), feature.flow_matrix(*teachers[:2])]
        return jnp.linalg.norm(pairs[0] - pairs[1], axis=1).sum() / batch

    def softened(temperature, alpha):
        if alpha == "None":  # the original omits T^2 here
            return lambda a: (
                response.softened_kl(a["0"], teacher, temperature).mean() / temperature**2
            )
        return lambda a: response.hinton(a["0"], teacher, labels, float(alpha), temperature).mean()

    def rkd(distance, angle, target):
        return lambda a: (
            distance * relation.distance(a["0"], target) + angle * relation.angle(a["0"], target)
        )

    adapt = connector(file, "fitnet_reg")
    both, first, scores = (
        {str(i): s for i, s in on_layer.items()},
        {"0": students[0]},
        {"0": logits},
    )
    # The original divides the rows of the similarities by their L1 norm.
    cases: dict[str, tuple[Callable, Mapping[str, object]]] = {
        "AT_code": (attention(feature.attention_transfer), both),
        "AT_paper": (attention(feature.attention_transfer_norm), both),
        "SP_batchmean": (
            lambda a: relation.similarity_preserving(a["0"], teachers[0], order=1),
            first,
        ),
        "SP_sum": (
            lambda a: batch**2 * relation.similarity_preserving(a["0"], teachers[1], order=1),
            {"0": students[1]},
        ),
        "RKD_d1_a2": (rkd(1, 2, teachers[0]), first),
        "RKD_dist_only": (rkd(1, 0, teachers[0]), first),
        "RKD_angle_only": (rkd(0, 1, teacher), scores),
        "PKT": (lambda a: relation.probability_transfer(a["0"], teacher), scores),
        "FSP_same_channels": (flow, {str(i): s for i, s in enumerate(same)}),
        "DIST": (lambda a: relation.correlation(a["0"], teacher), scores),
        "FitNet_mse": (
            lambda a: feature.l2(adapt(a["fs0"]), teachers[0]).mean(),
            {"fs0": students[0]},
        ),
    }
    for key in file:
        if match := re.fullmatch(r"out/(KD_T([\d.]+)_alpha(None|[\d.]+))", key):
            cases[match[1]] = (softened(float(match[2]), match[3]), scores)
    outputs: dict[str, object] = {}
    for name, (fn, arguments) in cases.items():
        outputs |= with_gradients(name, fn, arguments)
    return outputs


FAMILIES = {
    fn.__name__: Family(fn, lambda name: 1e-5, slow=fn in (distill_omgd, distill_torchdistill))
    for fn in (
        distill_mapping,
        distill_omgd,
        distill_stylekd,
        distill_tinygan,
        distill_torchdistill,
    )
}
FAMILIES["ganlosses"] = Family(
    ganlosses,
    lambda name: 1e-4 if "gp_" in name else 1e-6,
    lambda name: re.match(r"out/grad/(gp_|ortho)", name) is not None,
    slow=True,
)
