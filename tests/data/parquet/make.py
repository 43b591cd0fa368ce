"""Makes the Parquet files beside it: pip install pyarrow pandas datasets."""

from pathlib import Path

import datasets
import pandas
import pyarrow
import pyarrow.parquet

HERE = Path(__file__).parent


def row(number):
    turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"Näher: {number}"}]
    return {"messages": turns, "id": number, "score": number / 2, "tags": ["a"] * (number % 3), "note": None}


rows = [row(number) for number in range(300)]
table = pyarrow.Table.from_pylist(rows)
for codec in ["snappy", "zstd", "gzip", "lz4"]:
    pyarrow.parquet.write_table(table.slice(0, 5), HERE / f"{codec}.parquet", compression=codec)
# Several row groups, as long tables have.
pyarrow.parquet.write_table(table, HERE / "groups.parquet", compression="zstd", row_group_size=64)
datasets.Dataset.from_list(rows[:5]).to_parquet(HERE / "datasets.parquet")
pandas.DataFrame({"question": ["Why?", "How?"], "answer": ["So", None]}).to_parquet(HERE / "pandas.parquet")
