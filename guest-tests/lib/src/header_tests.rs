//! The C headers and the Rust ABI have the same names, values and offsets. No C compiler is needed: the headers have
//! only plain `#define NAME integer` lines and structures of fixed-width fields. This parser reads only those, and
//! fails on anything else.
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::path::PathBuf;

use svadev_spec::device::{self, Code, DescriptorFlags, FaultFlags, Priority, doorbell, opcode, queue_error, regs};

use crate::abi;

/// One structure: its fields in order as (name, offset, size), and its size.
#[derive(Debug, PartialEq)]
struct Layout {
    fields: Vec<(String, usize, usize)>,
    size: usize,
}

/// What a header defines.
#[derive(Default)]
struct Header {
    constants: BTreeMap<String, u64>,
    structs: BTreeMap<String, Layout>,
    /// `_IO(…, number)` by name.
    requests: BTreeMap<String, u64>,
}

impl Header {
    fn read(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../driver").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::parse(&without_comments(&text))
    }

    fn parse(text: &str) -> Self {
        let mut header = Self::default();
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if let Some(define) = line.strip_prefix("#define ") {
                header.define(define);
            } else if let Some(name) = line.strip_prefix("struct ").and_then(|l| l.strip_suffix(" {")) {
                let body = lines.by_ref().take_while(|l| *l != "};");
                header.structs.insert(name.to_owned(), layout(body));
            }
        }
        header
    }

    fn define(&mut self, define: &str) {
        let Some((name, value)) = define.split_once(char::is_whitespace) else { return };
        let value = value.trim();
        if let Some(request) = value.strip_prefix("_IO(SVADEV_IOC_MAGIC, ") {
            let number = request.strip_suffix(')').expect("closing parenthesis");
            self.requests.insert(name.to_owned(), integer(number).expect("a request number"));
        } else {
            let value = integer(value).unwrap_or_else(|| panic!("{name}: {value} is not a plain integer"));
            self.constants.insert(name.to_owned(), value);
        }
    }

    /// Compares every constant: what one side lacks is as wrong as another value.
    fn assert_constants(&self, expected: &[(&str, u64)]) {
        let expected: BTreeMap<_, _> = expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        assert_eq!(self.constants, expected);
    }
}

fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").expect("comment ends").1;
    }
    out + rest
}

/// `12`, `0x12`, either with `U`, or `(1 << 2)` with either.
fn integer(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        let (value, shift) = inner.split_once("<<")?;
        return Some(integer(value)? << integer(shift)?);
    }
    let digits = text.trim_end_matches('U');
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// Offsets by the C rules for fixed-width integers: each at a multiple of its size, the whole at one of the largest.
fn layout<'a>(body: impl Iterator<Item = &'a str>) -> Layout {
    let mut fields = Vec::new();
    let (mut end, mut align) = (0usize, 1);
    for line in body {
        let (kind, name) = line.trim_end_matches(';').split_once(' ').expect("a field is a type and a name");
        let size = match kind {
            "__u8" => 1,
            "__u16" => 2,
            "__u32" | "__s32" => 4,
            "__u64" | "__s64" => 8,
            _ => panic!("{kind} is not a fixed-width integer"),
        };
        let offset = end.next_multiple_of(size);
        assert_eq!(offset, end, "a hole before {name} would be elsewhere for i386, and leak kernel memory");
        fields.push((name.to_owned(), offset, size));
        end = offset + size;
        align = align.max(size);
    }
    let size = end.next_multiple_of(align);
    assert_eq!(end, size, "padding at the end would leak kernel memory");
    Layout { fields, size }
}

/// The layout of a Rust structure, fields by name.
macro_rules! rust_layout {
    ($type:ty, $($field:ident),+ $(,)?) => {{
        fn size_of_field<T, F>(_: impl Fn(&T) -> &F) -> usize {
            size_of::<F>()
        }
        Layout {
            fields: vec![$((
                stringify!($field).to_owned(),
                offset_of!($type, $field),
                size_of_field(|value: &$type| &value.$field),
            )),+],
            size: size_of::<$type>(),
        }
    }};
}

// After the macro that it uses.
mod mirror;

#[test]
fn structures_have_one_layout() {
    let structs = Header::read("uapi/svadev.h").structs;
    let expected = BTreeMap::from(
        [
            (
                "svadev_desc",
                rust_layout!(
                    device::Descriptor,
                    opcode,
                    flags,
                    spaces,
                    pasid,
                    cookie,
                    src,
                    dst,
                    length,
                    operand,
                    src_entries,
                    dst_entries,
                    reserved1
                ),
            ),
            ("svadev_sge", rust_layout!(device::ScatterEntry, address, length)),
            (
                "svadev_completion",
                rust_layout!(device::Completion, cookie, bytes_done, result, status, fault, reserved, seq),
            ),
            (
                "svadev_query",
                rust_layout!(
                    abi::QueryArgs,
                    argsz,
                    flags,
                    uapi_version,
                    device_version,
                    opcodes,
                    max_length,
                    max_scatter,
                    max_in_flight,
                    max_uncollected,
                    queues,
                    engines,
                    pci_address,
                    pasid,
                    in_flight,
                    uncollected,
                    resets,
                    max_user_queues,
                    user_queues,
                    features,
                    pci_domain,
                    state
                ),
            ),
            (
                "svadev_create_queue",
                rust_layout!(
                    abi::CreateQueueArgs,
                    argsz,
                    flags,
                    sq,
                    cq,
                    sq_log2,
                    cq_log2,
                    eventfd,
                    queue,
                    doorbell_offset,
                    wake_offset,
                    priority,
                    interrupt_interval_us,
                    interrupt_count,
                    reserved
                ),
            ),
            ("svadev_destroy_queue", rust_layout!(abi::DestroyQueueArgs, argsz, flags, queue, reserved)),
            (
                "svadev_query_queue",
                rust_layout!(abi::QueryQueueArgs, argsz, flags, queue, state, error, reserved, fault_address),
            ),
            ("svadev_bind", rust_layout!(abi::BindArgs, argsz, flags, pasid, reserved)),
            ("svadev_unbind", rust_layout!(abi::UnbindArgs, argsz, flags)),
            ("svadev_submit", rust_layout!(abi::SubmitArgs, argsz, flags, descs, count, reserved)),
            ("svadev_wait", rust_layout!(abi::WaitArgs, argsz, flags, completions, timeout_ns, capacity, min)),
            ("svadev_plant_swap", rust_layout!(abi::PlantSwapArgs, argsz, flags, address)),
        ]
        .map(|(name, layout)| (name.to_owned(), layout)),
    );
    assert_eq!(structs, expected);
}

#[test]
fn requests_have_one_number() {
    let header = Header::read("uapi/svadev.h");
    let expected = [
        ("SVADEV_IOC_QUERY", abi::IOC_QUERY),
        ("SVADEV_IOC_BIND", abi::IOC_BIND),
        ("SVADEV_IOC_UNBIND", abi::IOC_UNBIND),
        ("SVADEV_IOC_SUBMIT", abi::IOC_SUBMIT),
        ("SVADEV_IOC_WAIT", abi::IOC_WAIT),
        ("SVADEV_IOC_CREATE_QUEUE", abi::IOC_CREATE_QUEUE),
        ("SVADEV_IOC_DESTROY_QUEUE", abi::IOC_DESTROY_QUEUE),
        ("SVADEV_IOC_QUERY_QUEUE", abi::IOC_QUERY_QUEUE),
        ("SVADEV_IOC_PLANT_SWAP", abi::IOC_PLANT_SWAP),
    ];
    assert_eq!(header.requests, expected.map(|(name, number)| (name.to_owned(), u64::from(number))).into());
    // include/uapi/asm-generic/ioctl.h: no direction, no size, type in bits 15:8.
    let coded = nix::request_code_none!(abi::IOC_MAGIC, abi::IOC_WAIT);
    assert_eq!(coded, u64::from(abi::IOC_MAGIC) << 8 | u64::from(abi::IOC_WAIT));
}

#[test]
fn user_interface_constants_are_the_same() {
    let code = |code: Code| u64::from(code as u16);
    let flag = |flag: DescriptorFlags| u64::from(flag.bits());
    let priority = |priority: Priority| u64::from(priority as u8);
    Header::read("uapi/svadev.h").assert_constants(&[
        ("SVADEV_UAPI_VERSION", abi::UAPI_VERSION.into()),
        ("SVADEV_MAX_IN_FLIGHT", abi::MAX_IN_FLIGHT.into()),
        ("SVADEV_MAX_UNCOLLECTED", abi::MAX_UNCOLLECTED.into()),
        ("SVADEV_MAX_USER_QUEUES", abi::MAX_USER_QUEUES.into()),
        ("SVADEV_QUEUE_RUNNING", abi::QUEUE_RUNNING.into()),
        ("SVADEV_QUEUE_HALTED", abi::QUEUE_HALTED.into()),
        ("SVADEV_QUEUE_LOST", abi::QUEUE_LOST.into()),
        ("SVADEV_STATE_RUNNING", abi::STATE_RUNNING.into()),
        ("SVADEV_STATE_RESETTING", abi::STATE_RESETTING.into()),
        ("SVADEV_STATE_FAILED", abi::STATE_FAILED.into()),
        ("SVADEV_FEATURES_PROCESS_ADDRESSES", device::Features::PROCESS_ADDRESSES.bits()),
        ("SVADEV_FEATURES_PAGE_REQUESTS", device::Features::PAGE_REQUESTS.bits()),
        ("SVADEV_MIN_INTERRUPT_INTERVAL_US", abi::MIN_INTERRUPT_INTERVAL_US.into()),
        ("SVADEV_MIN_INTERRUPT_COUNT", abi::MIN_INTERRUPT_COUNT.into()),
        ("SVADEV_PRIORITY_NORMAL", priority(Priority::Normal)),
        ("SVADEV_PRIORITY_LOW", priority(Priority::Low)),
        ("SVADEV_PRIORITY_HIGH", priority(Priority::High)),
        ("SVADEV_PRIORITY_URGENT", priority(Priority::Urgent)),
        ("SVADEV_DOORBELL_SQ_TAIL", doorbell::SQ_TAIL),
        ("SVADEV_DOORBELL_CQ_HEAD", doorbell::CQ_HEAD),
        ("SVADEV_DOORBELL_SQ_HEAD", doorbell::SQ_HEAD),
        ("SVADEV_DOORBELL_CQ_TAIL", doorbell::CQ_TAIL),
        ("SVADEV_DOORBELL_ARMED", doorbell::ARMED),
        ("SVADEV_QUEUE_ERROR_NONE", queue_error::NONE.into()),
        ("SVADEV_QUEUE_ERROR_BAD_CONFIG", queue_error::BAD_CONFIG.into()),
        ("SVADEV_QUEUE_ERROR_BAD_TAIL", queue_error::BAD_TAIL.into()),
        ("SVADEV_QUEUE_ERROR_BAD_CQ_HEAD", queue_error::BAD_CQ_HEAD.into()),
        ("SVADEV_QUEUE_ERROR_SQ_FAULT", queue_error::SQ_FAULT.into()),
        ("SVADEV_QUEUE_ERROR_CQ_FAULT", queue_error::CQ_FAULT.into()),
        ("SVADEV_OP_NOP", opcode::NOP.into()),
        ("SVADEV_OP_DRAIN", opcode::DRAIN.into()),
        ("SVADEV_OP_COPY", opcode::COPY.into()),
        ("SVADEV_OP_FILL", opcode::FILL.into()),
        ("SVADEV_OP_COMPARE", opcode::COMPARE.into()),
        ("SVADEV_OP_CRC32C", opcode::CRC32C.into()),
        ("SVADEV_OP_PREFETCH", opcode::PREFETCH.into()),
        ("SVADEV_OP_DROP", opcode::DROP.into()),
        ("SVADEV_DESC_INTERRUPT", flag(DescriptorFlags::INTERRUPT)),
        ("SVADEV_DESC_FENCE", flag(DescriptorFlags::FENCE)),
        ("SVADEV_DESC_STOP_ON_FAULT", flag(DescriptorFlags::STOP_ON_FAULT)),
        ("SVADEV_DESC_SRC_LIST", flag(DescriptorFlags::SRC_LIST)),
        ("SVADEV_DESC_DST_LIST", flag(DescriptorFlags::DST_LIST)),
        ("SVADEV_DESC_PASID_MASK", u32::from(device::DescriptorPasid::new().with_pasid(0xf_ffff)).into()),
        ("SVADEV_DESC_PASID_VALID", u32::from(device::DescriptorPasid::new().with_valid(true)).into()),
        ("SVADEV_STATUS_SUCCESS", code(Code::Success)),
        ("SVADEV_STATUS_MISMATCH", code(Code::Mismatch)),
        ("SVADEV_STATUS_BAD_OPCODE", code(Code::BadOpcode)),
        ("SVADEV_STATUS_BAD_FLAGS", code(Code::BadFlags)),
        ("SVADEV_STATUS_BAD_LENGTH", code(Code::BadLength)),
        ("SVADEV_STATUS_BAD_RESERVED", code(Code::BadReserved)),
        ("SVADEV_STATUS_OVERLAP", code(Code::Overlap)),
        ("SVADEV_STATUS_BAD_LIST", code(Code::BadList)),
        ("SVADEV_STATUS_BAD_ADDRESS", code(Code::BadAddress)),
        ("SVADEV_STATUS_PAGE_FAULT", code(Code::PageFault)),
        ("SVADEV_STATUS_PAGE_REQUEST_FAILED", code(Code::PageRequestFailed)),
        ("SVADEV_STATUS_PAGE_REQUEST_TIMEOUT", code(Code::PageRequestTimeout)),
        ("SVADEV_STATUS_TRANSLATION_BLOCKED", code(Code::TranslationBlocked)),
        ("SVADEV_STATUS_MEMORY_ERROR", code(Code::MemoryError)),
        ("SVADEV_STATUS_ABORTED", code(Code::Aborted)),
        ("SVADEV_FAULT_ADDRESS_VALID", FaultFlags::ADDRESS_VALID.bits().into()),
        ("SVADEV_FAULT_WRITE", FaultFlags::WRITE.bits().into()),
        ("SVADEV_IOC_MAGIC", abi::IOC_MAGIC.into()),
        ("SVADEV_IOC_QUEUE_FIRST", abi::IOC_QUEUE_FIRST.into()),
        ("SVADEV_IOC_QUEUE_LAST", abi::IOC_QUEUE_LAST.into()),
        ("SVADEV_SUBMIT_RAW", abi::SUBMIT_RAW.into()),
    ]);
}

#[test]
fn hardware_constants_are_the_same() {
    let limits = |queues, vectors, engines| {
        u32::from(device::Limits::new().with_queues(queues).with_vectors(vectors).with_engines(engines)).into()
    };
    let status = device::Status::new();
    let abort = device::AbortSlot::new();
    let command_status = device::CommandStatus::new();
    let size = device::QueueSize::new();
    let pasid = device::QueuePasid::new();
    let vector = device::QueueVector::new();
    let queue_status = device::QueueStatus::new();
    let service = device::QueueService::new();
    let moderation = device::QueueModeration::new();
    // The PASID's place in COMMAND, as a shift.
    let pasid_shift = u64::from(device::Command::new().with_pasid(1)).trailing_zeros();
    assert_eq!(u64::from(device::Command::new().with_opcode(0xff)), 0xff, "the driver puts the opcode lowest");
    Header::read("svadev_hw.h").assert_constants(&[
        ("SVADEV_PCI_VENDOR_ID", device::PCI_VENDOR_ID.into()),
        ("SVADEV_PCI_DEVICE_ID_ACCELERATOR", device::PCI_DEVICE_ID_ACCELERATOR.into()),
        ("SVADEV_PCI_DEVICE_ID_IOMMU", device::PCI_DEVICE_ID_IOMMU.into()),
        ("SVADEV_BAR_REGISTERS", device::BAR_REGISTERS.into()),
        ("SVADEV_BAR_DOORBELLS", device::BAR_DOORBELLS.into()),
        ("SVADEV_BAR_MSIX", device::BAR_MSIX.into()),
        ("SVADEV_BAR_DEVICE_MEMORY", device::BAR_DEVICE_MEMORY.into()),
        ("SVADEV_DOORBELL_STRIDE", device::DOORBELL_STRIDE),
        ("SVADEV_ID_MAGIC", device::ID_MAGIC.into()),
        ("SVADEV_ABI_MAJOR", device::ABI_MAJOR.into()),
        ("SVADEV_ABI_MINOR", device::ABI_MINOR.into()),
        ("SVADEV_MAX_LENGTH", device::MAX_LENGTH),
        ("SVADEV_MAX_SCATTER_ENTRIES", device::MAX_SCATTER_ENTRIES.into()),
        ("SVADEV_RING_LOG2_MIN", (*device::RING_LOG2.start()).into()),
        ("SVADEV_RING_LOG2_MAX", (*device::RING_LOG2.end()).into()),
        ("SVADEV_MAX_QUEUES", device::MAX_QUEUES.into()),
        ("SVADEV_ABORT_SLOTS", device::ABORT_SLOTS.into()),
        ("SVADEV_REG_BAR_SIZE", regs::BAR_SIZE),
        ("SVADEV_REG_ID", regs::ID),
        ("SVADEV_REG_VERSION", regs::VERSION),
        ("SVADEV_REG_OPCODES", regs::OPCODES),
        ("SVADEV_REG_LIMITS", regs::LIMITS),
        ("SVADEV_REG_MAX_RING_LOG2", regs::MAX_RING_LOG2),
        ("SVADEV_REG_MAX_LENGTH", regs::MAX_LENGTH),
        ("SVADEV_REG_MAX_SCATTER", regs::MAX_SCATTER),
        ("SVADEV_REG_COMMAND_LIMIT", regs::COMMAND_LIMIT),
        ("SVADEV_REG_CONTROL", regs::CONTROL),
        ("SVADEV_REG_STATUS", regs::STATUS),
        ("SVADEV_REG_WAKE", regs::WAKE),
        ("SVADEV_REG_COMMAND", regs::COMMAND),
        ("SVADEV_REG_COMMAND_STATUS", regs::COMMAND_STATUS),
        ("SVADEV_REG_FEATURES", regs::FEATURES),
        ("SVADEV_REG_ABORT", regs::ABORT),
        ("SVADEV_REG_QUEUES", regs::QUEUES),
        ("SVADEV_REG_QUEUE_STRIDE", regs::QUEUE_STRIDE),
        ("SVADEV_REG_QUEUE_SQ_BASE", regs::QUEUE_SQ_BASE),
        ("SVADEV_REG_QUEUE_CQ_BASE", regs::QUEUE_CQ_BASE),
        ("SVADEV_REG_QUEUE_SIZE", regs::QUEUE_SIZE),
        ("SVADEV_REG_QUEUE_PASID", regs::QUEUE_PASID),
        ("SVADEV_REG_QUEUE_VECTOR", regs::QUEUE_VECTOR),
        ("SVADEV_REG_QUEUE_CONTROL", regs::QUEUE_CONTROL),
        ("SVADEV_REG_QUEUE_STATUS", regs::QUEUE_STATUS),
        ("SVADEV_REG_QUEUE_SERVICE", regs::QUEUE_SERVICE),
        ("SVADEV_REG_QUEUE_FAULT_ADDRESS", regs::QUEUE_FAULT_ADDRESS),
        ("SVADEV_REG_QUEUE_MODERATION", regs::QUEUE_MODERATION),
        ("SVADEV_LIMITS_QUEUES", limits(u16::MAX, 0, 0)),
        ("SVADEV_LIMITS_VECTORS", limits(0, u8::MAX, 0)),
        ("SVADEV_LIMITS_ENGINES", limits(0, 0, u8::MAX)),
        ("SVADEV_CONTROL_ENABLE", u32::from(device::Control::new().with_enable(true)).into()),
        ("SVADEV_STATUS_REG_ENABLED", u32::from(status.with_enabled(true)).into()),
        ("SVADEV_STATUS_REG_BUSY", u32::from(status.with_busy(true)).into()),
        ("SVADEV_STATUS_REG_TIMEOUT", u32::from(status.with_timeout(true)).into()),
        ("SVADEV_FEATURE_PROCESS_ADDRESSES", device::Features::PROCESS_ADDRESSES.bits()),
        ("SVADEV_FEATURE_PAGE_REQUESTS", device::Features::PAGE_REQUESTS.bits()),
        ("SVADEV_FEATURE_MIRROR", device::Features::MIRROR.bits()),
        ("SVADEV_FEATURE_OPERAND_SPACES", device::Features::OPERAND_SPACES.bits()),
        ("SVADEV_FEATURE_DEVICE_MEMORY", device::Features::DEVICE_MEMORY.bits()),
        ("SVADEV_ABORT_PASID", u32::from(abort.with_pasid(0xf_ffff)).into()),
        ("SVADEV_ABORT_TIMEOUT", u32::from(abort.with_timeout(true)).into()),
        ("SVADEV_ABORT_BUSY", u32::from(abort.with_busy(true)).into()),
        ("SVADEV_COMMAND_PASID_SHIFT", pasid_shift.into()),
        ("SVADEV_COMMAND_ABORT_PASID", device::command::ABORT_PASID.into()),
        ("SVADEV_COMMAND_DRAIN_PASID", device::command::DRAIN_PASID.into()),
        ("SVADEV_COMMAND_STATUS_BUSY", u32::from(command_status.with_busy(true)).into()),
        ("SVADEV_COMMAND_STATUS_TIMEOUT", u32::from(command_status.with_timeout(true)).into()),
        ("SVADEV_COMMAND_STATUS_BAD", u32::from(command_status.with_bad(true)).into()),
        ("SVADEV_QUEUE_SIZE_SQ_LOG2", u32::from(size.with_sq_log2(u8::MAX)).into()),
        ("SVADEV_QUEUE_SIZE_CQ_LOG2", u32::from(size.with_cq_log2(u8::MAX)).into()),
        ("SVADEV_QUEUE_PASID_PASID", u32::from(pasid.with_pasid(0xf_ffff)).into()),
        ("SVADEV_QUEUE_PASID_USER", u32::from(pasid.with_user(true)).into()),
        ("SVADEV_QUEUE_VECTOR_VECTOR", u32::from(vector.with_vector(u8::MAX)).into()),
        ("SVADEV_QUEUE_VECTOR_ENABLE", u32::from(vector.with_enable(true)).into()),
        ("SVADEV_QUEUE_SERVICE_PRIORITY", u32::from(service.with_priority(u8::MAX)).into()),
        ("SVADEV_QUEUE_MODERATION_INTERVAL_US", u32::from(moderation.with_interval_us(u16::MAX)).into()),
        ("SVADEV_QUEUE_MODERATION_COUNT", u32::from(moderation.with_count(u16::MAX)).into()),
        // Bit 0 enables, as the register's documentation says; it has no type of its own.
        ("SVADEV_QUEUE_CONTROL_ENABLE", 1),
        ("SVADEV_QUEUE_STATUS_ENABLED", u32::from(queue_status.with_enabled(true)).into()),
        ("SVADEV_QUEUE_STATUS_HALTED", u32::from(queue_status.with_halted(true)).into()),
        ("SVADEV_QUEUE_STATUS_ERROR", u32::from(queue_status.with_error(u8::MAX)).into()),
    ]);
}

#[test]
fn the_reader_sees_what_it_must() {
    let header = Header::parse(&without_comments(
        "#define GUARD\n#define A 0x10U /* a\n comment */\n#define B (1U << 4)\n\
         struct s {\n\t__u32 x;\n\t__u32 y;\n};\n",
    ));
    assert_eq!(header.constants, BTreeMap::from([("A".to_owned(), 16), ("B".to_owned(), 16)]));
    assert_eq!(header.structs["s"].fields, [("x".to_owned(), 0, 4), ("y".to_owned(), 4, 4)]);
}

#[test]
#[should_panic(expected = "a hole before y")]
fn a_hole_is_found() {
    Header::parse("struct s {\n\t__u32 x;\n\t__u64 y;\n};\n");
}
