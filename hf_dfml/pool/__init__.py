"""Where teachers live: pools of pretrained classifiers in folders and on the Hub."""

from hf_dfml.pool.black_box.pool import BlackBox, BlackBoxPool
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.inspection import check_pool, pool_table
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.opening import open_pool
from hf_dfml.pool.queries import QueryBudgetError, ServiceError
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool

__all__ = [
    "BlackBox",
    "BlackBoxPool",
    "MemberError",
    "ModelPool",
    "PoolEntry",
    "QueryBudgetError",
    "ServiceError",
    "Teacher",
    "TeacherPool",
    "check_pool",
    "open_pool",
    "pool_table",
]
