"""Mistakes in the kernels: in the native library and its wrappers, and in Triton."""

from mutations import Mutation

KERNELS = "kernels/fastdreamer_kernels/"
SIMD, LAYERS, MATMUL, RSSM, CATEGORICAL, POOL = (
    f"kernels/csrc/{name}" for name in ("simd.h", "layers.h", "matmul.h", "rssm.h", "categorical.h", "pool.cpp")
)
SAMPLE, KL, RETURN, GRU, GATHER, LAPROP, OBSERVE, IMAGINE, MLP, BINS, PHILOX = (
    f"{KERNELS}{op}/native.cpp"
    for op in (
        "unimix_sample", "unimix_kl", "lambda_return", "block_gru", "replay_gather", "laprop_agc",
        "observe_sequence", "imagine_sequence", "mlp", "twohot", "philox",
    )
)  # fmt: skip
BACKENDS, HEADS, EDGES, PROCESS, NUMBERS = (
    f"test_kernels_{name}.py" for name in ("backends", "heads", "edges", "process", "philox")
)
VALUES, LARGE = f"{HEADS}::test_values_and_gradients", f"{HEADS}::test_large_values_and_gradients"


NORM, NORMED = f"{KERNELS}norm_act/cuda.py", "test_kernels_norm.py::test_values_and_gradients"
SKIPS = f"{EDGES}::test_laprop_changes_nothing_where_a_gradient_is_not_finite"


def values(case: str) -> str:
    """The test of one small case on the native library."""
    return f"{BACKENDS}::test_values_and_gradients[{case}-native]"


def large(case: str) -> str:
    """The test of a case with work for several tasks."""
    return f"{BACKENDS}::test_large_values_and_gradients[{case}]"


NATIVE = {
    "an edge is of the class before": Mutation(
        SAMPLE, "index -= uniform >= cdf;", "index -= uniform > cdf;", f"{EDGES}::test_samples_at_the_ends[native]"
    ),
    "index beyond the last class": Mutation(
        SAMPLE, "if (k + 1 < classes)", "if (k + 1 <= classes)", f"{EDGES}::test_samples_at_the_ends[native]"
    ),
    "kl without its floor": Mutation(
        KL, "dyn[r] = rep[r] = total < free_nats ? free_nats : total;", "dyn[r] = rep[r] = total;",
        values("unimix_kl-(6,)-3-8-0.01-free"),
    ),
    "kl slope without the share of the softmax": Mutation(
        KL, "log_q2[k] = -q * mix.share(softmax2[k]);", "log_q2[k] = -q;", values("unimix_kl-(1,)-1-2-0.01")
    ),
    "kl gradient below the floor": Mutation(KL, ">= free_nats;", ">= 0;", values("unimix_kl-(6,)-3-8-0.01-free")),
    "value of the step before": Mutation(
        RETURN, "c * (1 - mix) * value[at + t]", "c * (1 - mix) * value[at + t - 1]", values("lambda_return-1-2")
    ),
    "scale gradient of the first rows": Mutation(
        GRU, "const Rows sums{scale_parts[first / kNormRows], 0};", "const Rows sums{scale_parts[0], 0};",
        large("block_gru-600-96-4"),
    ),
    "window beyond the end of the ring": Mutation(
        GATHER, "count = min_of(min_of(length - step, end - at), rows - row);",
        "count = min_of(length - step, end - at);", values("replay_gather-(2,9,3)-4-6-torch.uint8"),
    ),
    "eps 1e-15": Mutation(
        LAPROP, "kTiny = 1e-20f", "kTiny = 1e-15f", f"{EDGES}::test_laprop_keeps_denormals[native]"
    ),
    "ties rounded up": Mutation(
        LAPROP, "rounded = b + 0x7fff + ((b >> 16) & 1);", "rounded = b + 0x8000;",
        f"{EDGES}::test_laprop_rounds_the_shadow_to_nearest_even[native]",
    ),
    "an infinite gradient is taken": Mutation(
        LAPROP, "__builtin_isfinite(static_cast<float>(totals[0]))", "totals[0] == totals[0]", SKIPS
    ),
    "a skipped update loses the squares of its parameters": Mutation(
        LAPROP, "finite ? all[i].update[1] : all[i].theta", "finite ? all[i].update[1] : 0", SKIPS
    ),
    "only the first average": Mutation(
        LAPROP, "slow[average++]", "slow[average]",
        values("laprop_agc-(3,5)-(17,)-(4,3,5,2)-(1,)-0.3-7-shadow-1-2"),
    ),
    "gradient in another memory order": Mutation(
        f"{KERNELS}laprop_agc/native.py",
        "return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)",
        "return grad.as_strided(param.shape, param.stride())",
        values("laprop_agc-(3,5)-(17,)-(4,3,5,2)-(1,)-0.3-7-shadow-1-2"),
    ),
    "observe: state not reset": Mutation(
        OBSERVE, "keep[r] = !is_first[(first + r) * n.time + t];", "keep[r] = 1;", VALUES
    ),
    "observe: gradient through a reset": Mutation(
        OBSERVE, "if (is_first[(first + r) * n.time + t]) {", "if (t < 0) {", VALUES
    ),
    "observe: gradient for a forgotten latent": Mutation(
        OBSERVE, "if (is_first[b * n.time + t]) return -1;", "", VALUES
    ),
    "observe: gradient of the logits alone left out": Mutation(
        OBSERVE, "load(d_logits[r] + i, count) + load(logit_gradient + row + i, count)", "load(d_logits[r] + i, count)",
        VALUES,
    ),
    "observe: scale gradient of another embedding": Mutation(
        OBSERVE, "scales.embeds + first * hidden3 + i * n.hidden, hidden3", "scales.embeds + first * hidden3, hidden3",
        VALUES,
    ),
    "imagine: stddev without its offset": Mutation(
        IMAGINE, "sigmoid(load(b[r] + columns + i, count) + 2.0f)", "sigmoid(load(b[r] + columns + i, count))", VALUES
    ),
    "imagine: noise of the first key": Mutation(
        IMAGINE, "load(noise[r] + element + i, count)", "load(noise[r] + i, count)", VALUES
    ),
    "imagine: the policy's layers of another step": Mutation(
        IMAGINE, "memcpy(saved + (first + r * stride) * width", "memcpy(saved + (first + r) * width",
        f"{HEADS}::test_what_the_policy_leaves_is_what_mlp_would",
    ),
    "imagine: uniforms of the first task": Mutation(
        IMAGINE, "uniform + (first * horizon + h) * n.groups", "uniform + h * n.groups", LARGE
    ),
    "mlp: gradient of the input through another layer": Mutation(
        MLP, "multiply(0, n.inputs,", "multiply(n.layers - 1, n.inputs,", VALUES
    ),
    "mlp: no gradient between layers without an output": Mutation(
        MLP, "if (!last) multiply(i + 1, width, d_act);", "if (n.outputs) multiply(i + 1, width, d_act);", VALUES
    ),
    "mlp: scale gradient of the first chunk": Mutation(
        MLP, "scales + chunks * offset + task * width);", "scales + chunks * offset);", LARGE
    ),
    "latent gradient: a group on the edge of two parts": Mutation(
        LAYERS, "int64_t s = first / classes; s < groups", "int64_t s = (first + classes - 1) / classes; s < groups", LARGE
    ),
    "twohot: gradient of one target": Mutation(
        BINS, "gradient[r] * static_cast<float>(targets) / of.sum", "gradient[r] / of.sum", VALUES
    ),
    "twohot: weights swapped": Mutation(
        BINS, "out[at.below] -= gradient[r] * (1 - at.weight);", "out[at.below] -= gradient[r] * at.weight;", VALUES
    ),
    "twohot: hides a NaN": Mutation(
        BINS, "scalar(of.sum, vlog) + nan", "scalar(of.sum, vlog)", f"{EDGES}::test_a_nan_is_not_hidden_by_parts_of_the_model[native]"
    ),
    "philox: counter of 32 bits": Mutation(
        PHILOX, "static_cast<uint32_t>(counter >> 32)", "0", f"{NUMBERS}::test_a_million_numbers_are_bit_equal"
    ),
    "philox: words of one task only": Mutation(
        PHILOX, "philox(static_cast<uint32_t>(first), counter", "philox(static_cast<uint32_t>(first % kTaskBlocks), counter",
        f"{NUMBERS}::test_a_million_numbers_are_bit_equal",
    ),
    "norm without eps": Mutation(
        LAYERS, "static_cast<float>(n) + kNormEps)", "static_cast<float>(n))", VALUES
    ),
    "update gate for the reset gate": Mutation(
        LAYERS, "Vec cand = vtanh(reset * load(gates + n + i, count));\n    Vec update",
        "Vec cand = vtanh(load(gates + n + i, count));\n    Vec update", VALUES,
    ),
    "last class never drawn": Mutation(LAYERS, "k + 1 < classes", "k + 2 < classes", VALUES),
    "scale gradient of one step": Mutation(LAYERS, "if (add) total +=", "if (!add) total +=", VALUES),
    "actions not scaled": Mutation(RSSM, "value / max_of(size, 1.0f)", "value", VALUES),
    "every block sees the first": Mutation(
        RSSM, "linear_add(rows, own, deter.from(g * width)", "linear_add(rows, own, deter.from(0)", VALUES
    ),
    "later passes overwrite": Mutation(MATMUL, "add || k > 0, width);", "add, width);", LARGE),
    "gradient of the last rows": Mutation(MATMUL, "nullptr, r > 0);", "nullptr, false);", LARGE),
    "exp that does not fall to zero": Mutation(
        CATEGORICAL, "softmax[k] = exp_or_zero(x[k]);", "softmax[k] = vexp(x[k]);",
        f"{EDGES}::test_samples_at_the_ends[native]",
    ),
    "log hides a NaN": Mutation(
        CATEGORICAL, ": vlog(mixed(softmax[k]))) + nan;", ": vlog(mixed(softmax[k])));",
        f"{EDGES}::test_a_nan_is_not_hidden[native]",
    ),
    "exp hides a NaN": Mutation(
        SIMD, "x = vmin(splat(88.3f), vmax(splat(-87.3f), x));", "x = vmin(vmax(x, splat(-87.3f)), splat(88.3f));",
        f"{EDGES}::test_a_nan_is_not_hidden[native]",
    ),
    "a lone last column is left out": Mutation(SIMD, "if (i < n) body(i, n - i);", "if (i + 1 < n) body(i, n - i);", VALUES),
    "a child waits for its parent's threads": Mutation(
        POOL, "  pool = nullptr;\n  user.unlock();", "  user.unlock();", f"{PROCESS}::test_a_fork_has_threads_of_its_own"
    ),
    "the last task is left out": Mutation(
        POOL,
        "job.next.fetch_add(1); i < job.tasks; i = job.next.fetch_add(1)) job.task",
        "job.next.fetch_add(1); i + 1 < job.tasks; i = job.next.fetch_add(1)) job.task",
        large("unimix_sample-(700,31)-5-0.01"),
    ),
}  # fmt: skip
"""In the order of their files: what the last mistake touched is compiled with the next."""

CUDA, OPTIMIZER, CHAINS = "test_cuda_kernels.py", "test_cuda_laprop.py", "test_cuda_sequences.py"
CHAIN, FORWARD, BACKWARD = (f"{KERNELS}_chain{part}.py" for part in ("", "_forward", "_backward"))
OBSERVED, IMAGINED = f"{CHAINS}::test_observe_and_every_gradient", f"{CHAINS}::test_imagine"

TRITON = {
    "return of a row too many": Mutation(
        f"{KERNELS}lambda_return/cuda.py", "inside = row < B", "inside = row <= B", f"{CUDA}::test_lambda_return"
    ),
    "sample beyond the last class": Mutation(
        f"{KERNELS}unimix_sample/cuda.py", "(k < K - 1)", "(k < K)",
        f"{CUDA}::test_unimix_sample_stays_in_range_where_rounding_leaves_the_cdf_short_of_one",
    ),
    "no gradient at the floor": Mutation(
        f"{KERNELS}unimix_kl/cuda.py", "flows = tl.sum(kl, 0) >= FREE", "flows = tl.sum(kl, 0) > FREE",
        f"{CUDA}::test_unimix_kl_passes_gradient_exactly_at_the_floor",
    ),
    "entropy of the last groups": Mutation(
        f"{KERNELS}unimix_kl/cuda.py", "entropy -= tl.sum(", "entropy = -tl.sum(", f"{CUDA}::test_unimix_kl"
    ),
    "gru norm without eps": Mutation(
        f"{KERNELS}block_gru/cuda.py", "tl.sum(total, 0) / D + EPS", "tl.sum(total, 0) / D", f"{CUDA}::test_block_gru"
    ),
    "update gate open at the start": Mutation(
        f"{KERNELS}block_gru/cuda.py", "u = sigmoid(update.to(tl.float32) - 1.0)",
        "u = sigmoid(update.to(tl.float32))", f"{CUDA}::test_block_gru",
    ),
    "ring wraps one row late": Mutation(
        f"{KERNELS}replay_gather/cuda.py", "tl.where(row >= rows,", "tl.where(row > rows,", f"{CUDA}::test_replay_gather"
    ),
    "moments of one rate": Mutation(
        f"{KERNELS}laprop_agc/cuda.py", "m += (u - m) * FRESH1", "m += (u - m) * FRESH2", f"{OPTIMIZER}::test_laprop_agc"
    ),
    "a gradient of NaN is taken": Mutation(
        f"{KERNELS}laprop_agc/cuda.py", 'tl.load(total) < float("inf")', 'tl.load(total) != float("inf")', SKIPS
    ),
    "only the first chunks are looked at": Mutation(
        f"{KERNELS}laprop_agc/cuda.py", "part += tl.load(sums + at, at < chunks, 0.0)\n    tl.store(total",
        "part = tl.load(sums + at, at < chunks, 0.0)\n    tl.store(total",
        f"{OPTIMIZER}::test_laprop_agc_adds_up_more_chunks_than_a_program_holds_at_once",
    ),
    "a skipped update updates the rest of a chunk": Mutation(
        f"{KERNELS}laprop_agc/cuda.py", "length = tl.where(finite, length, 0)",
        "length = tl.where(finite, length, length % BLOCK)", SKIPS,
    ),
    "counter of 32 bits": Mutation(
        f"{KERNELS}philox/cuda.py", "(now >> 32)", "(now & 0)", f"{NUMBERS}::test_the_triton_kernel"
    ),
    "words in another order": Mutation(
        f"{KERNELS}philox/cuda.py", "tl.interleave(w0, w2), tl.interleave(w1, w3)",
        "tl.interleave(w0, w1), tl.interleave(w2, w3)", f"{NUMBERS}::test_the_triton_kernel",
    ),
    "every program makes the numbers of the first": Mutation(
        f"{KERNELS}philox/cuda.py", "(program * (TILE // 4) + tl.arange", "(tl.arange",
        f"{NUMBERS}::test_the_triton_kernel",
    ),
    "a normal of 32-bit arithmetic": Mutation(
        f"{KERNELS}philox/cuda.py", "second.to(tl.float64)", "second.to(tl.float32)",
        f"{NUMBERS}::test_the_triton_kernel",
    ),
    "a number too many": Mutation(
        f"{KERNELS}philox/cuda.py", "numbers, at < count)", "numbers, at <= count)", f"{CUDA}::test_philox"
    ),
    "norm without eps": Mutation(NORM, "tl.sum(wide * wide, 1) / D + EPS", "tl.sum(wide * wide, 1) / D", NORMED),
    "gradient of the norm's size kept": Mutation(NORM, "weighted - xhat * along[:, None]", "weighted", NORMED),
    "rows of the first tile alone": Mutation(NORM, "of_scale += tl.sum(dy * xhat, 0)", "of_scale = tl.sum(dy * xhat, 0)", NORMED),
    "layer norm without eps": Mutation(CHAIN, "/ WIDTH + EPS)", "/ WIDTH)", OBSERVED),
    "dreamt actions not scaled": Mutation(CHAIN, "(a / tl.maximum(tl.abs(a), 1.0))", "a", IMAGINED),
    "squares of the last tiles": Mutation(
        CHAIN, "tl.sum(value * value, 1), rows < ROWS)", "tl.sum(value * value, 1) + 0.01, rows < ROWS)", OBSERVED
    ),
    "old state not reset": Mutation(
        FORWARD, "live[:, None] & inside[None, :], other=0.0).to(tl.float32)\n    update",
        "mask, other=0.0).to(tl.float32)\n    update", OBSERVED,
    ),
    "chained sample beyond the last class": Mutation(FORWARD, "(c < K - 1)", "(c < K)", OBSERVED),
    "gradient carried through a reset": Mutation(
        BACKWARD, "inside & live_next[:, None]", "inside", OBSERVED
    ),
    "slope of the update gate": Mutation(BACKWARD, "acc * (cand - old)", "acc * (cand + old)", OBSERVED),
}  # fmt: skip
