"""SQL macros and views for work with weights."""

from __future__ import annotations

from zooplatform.interfaces import SqlFunction, SqlView

__all__ = ["FUNCTIONS", "VIEWS"]

# Lists become DOUBLE[] first: DuckDB adds up in the type of the list, and single precision is not enough.
_A, _B, _V = "CAST(a AS DOUBLE[])", "CAST(b AS DOUBLE[])", "CAST(v AS DOUBLE[])"


def _sixteen_bits(exponent_bits: int, mantissa_bits: int) -> str:
    """SQL for the value of the 16 bits `x` of an IEEE-like number: sign, exponent, mantissa."""
    bias = 2 ** (exponent_bits - 1) - 1
    top = 2**exponent_bits - 1
    sign = "CASE WHEN (CAST(x AS UINTEGER) >> 15) & 1 = 1 THEN -1.0::DOUBLE ELSE 1.0::DOUBLE END"
    exponent = f"((CAST(x AS UINTEGER) >> {mantissa_bits}) & {top})"
    mantissa = f"(CAST(x AS UINTEGER) & {2**mantissa_bits - 1})"
    scaled = f"CAST({mantissa} AS DOUBLE) / {2**mantissa_bits}"
    return (
        f"({sign}) * CASE WHEN {exponent} = {top} AND {mantissa} = 0 THEN 'inf'::DOUBLE "
        f"WHEN {exponent} = {top} THEN 'nan'::DOUBLE "
        f"WHEN {exponent} = 0 THEN pow(2.0::DOUBLE, {1 - bias}) * ({scaled}) "
        f"ELSE pow(2.0::DOUBLE, CAST({exponent} AS INTEGER) - {bias}) * (1 + {scaled}) END"
    )


FUNCTIONS = (
    SqlFunction(
        name="cosine",
        parameters=("a", "b"),
        sql=f"nullif(list_cosine_similarity({_A}, {_B}), 'nan'::DOUBLE)",
        returns="DOUBLE",
        summary="Cosine similarity of two lists, in double precision.",
        null_handling="NULL in, NULL out; NULL for a list of zeros or an empty one",
    ),
    SqlFunction(
        name="l2_norm",
        parameters=("v",),
        sql=f"sqrt(list_inner_product({_V}, {_V}))",
        returns="DOUBLE",
        summary="Euclidean norm of a list, in double precision.",
    ),
    SqlFunction(
        name="l2_distance",
        parameters=("a", "b"),
        sql=f"list_distance({_A}, {_B})",
        returns="DOUBLE",
        summary="Euclidean distance of two lists, in double precision.",
    ),
    SqlFunction(
        name="bf16",
        parameters=("x",),
        sql=_sixteen_bits(8, 7),
        returns="FLOAT",
        summary="Value of the 16 bits of a bfloat16 number.",
    ),
    SqlFunction(
        name="f16",
        parameters=("x",),
        sql=_sixteen_bits(5, 10),
        returns="FLOAT",
        summary="Value of the 16 bits of a half-precision number.",
    ),
    SqlFunction(
        name="ggap",
        parameters=("train", "test"),
        sql="CAST(train AS DOUBLE) - CAST(test AS DOUBLE)",
        returns="DOUBLE",
        summary="Generalisation gap: training minus test value.",
    ),
    SqlFunction(
        name="human_bytes",
        parameters=("n",),
        sql="formatReadableDecimalSize(CAST(n AS BIGINT))",
        returns="VARCHAR",
        summary="A size in decimal units, such as 90.9 MB.",
    ),
)

VIEWS = (
    SqlView(
        name="network_stats",
        summary="Norm, zeros and non-finite values of every checkpoint, over its floating-point tensors.",
        sql="""
            WITH parts AS (
                SELECT architecture_id, t.name AS name, t.numel AS numel
                FROM (SELECT architecture_id, unnest(layout) AS t FROM architectures)
                WHERE t.dtype LIKE '%float%'
            )
            SELECT c.checkpoint_id AS checkpoint_id,
                sqrt(sum(s.l2 * s.l2)) AS weight_norm,
                sum(s.num_zero) / nullif(sum(p.numel), 0) AS sparsity,
                CAST(sum(s.num_nan) AS BIGINT) AS num_nan,
                CAST(sum(s.num_inf) AS BIGINT) AS num_inf
            FROM tensor_stats s
            JOIN checkpoints c USING (checkpoint_id)
            JOIN parts p ON p.architecture_id = c.architecture_id AND p.name = s.name
            GROUP BY c.checkpoint_id
        """,
    ),
    SqlView(
        name="duplicate_tensors",
        summary="Stored tensors that several checkpoints share.",
        sql="""
            SELECT tensor_hash,
                list_sort(list(DISTINCT name)) AS names,
                any_value(dtype) AS dtype,
                any_value(shape) AS shape,
                any_value(size_bytes) AS size_bytes,
                count(DISTINCT checkpoint_id) AS num_checkpoints,
                list_sort(list(DISTINCT checkpoint_id)) AS checkpoint_ids
            FROM tensors
            WHERE tensor_hash IS NOT NULL
            GROUP BY tensor_hash
            HAVING count(DISTINCT checkpoint_id) > 1
        """,
    ),
    SqlView(
        name="layer_sizes",
        summary="Layers of every architecture: type, tensors, parameters, bytes, and how many models have them.",
        # A tensor that no adapter has put into a layer counts as one by itself.
        sql="""
            WITH parts AS (
                SELECT architecture_id, name AS architecture, family, unnest(layout) AS t,
                    generate_subscripts(layout, 1) AS place
                FROM architectures
            ), counts AS (
                SELECT architecture_id, count(*) AS num_models FROM models GROUP BY architecture_id
            )
            SELECT architecture_id,
                any_value(architecture) AS architecture,
                any_value(family) AS family,
                t.layer_index AS layer_index,
                any_value(t.layer_type) AS layer_type,
                list(t.name ORDER BY place) AS tensors,
                CAST(sum(t.numel) AS BIGINT) AS num_parameters,
                CAST(sum(t.size_bytes) AS BIGINT) AS size_bytes,
                CAST(coalesce(any_value(num_models), 0) AS BIGINT) AS num_models
            FROM parts LEFT JOIN counts USING (architecture_id)
            GROUP BY architecture_id, t.layer_index, CASE WHEN t.layer_index IS NULL THEN place END
        """,
    ),
)
