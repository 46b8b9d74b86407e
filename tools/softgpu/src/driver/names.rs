//! Every entry point by name.
//! In: names asked of cuGetProcAddress. Out: addresses. Owns: the table, and the answers of entry points that are not implemented.
//! Not here: what implemented ones do.
//!
//! A missing entry point is still exported: it says its name on stderr and returns CUDA_ERROR_NOT_SUPPORTED, so that a program
//! that binds all symbols at start-up runs, and one that calls such a function learns which.

use super::context::*;
use super::graph::*;
use super::launch::*;
use super::memory::*;
use super::module::*;
use super::stream::*;
use super::*;
use std::ffi::c_void;

macro_rules! table {
    ($($name:ident),* $(,)?) => {
        /// Implemented entry points.
        pub static IMPLEMENTED: &[(&str, Address)] = &[$((stringify!($name), Address($name as *const c_void))),*];
    };
}

macro_rules! missing {
    ($($name:ident),* $(,)?) => {
        $(
            // In C's calling conventions extra arguments do no harm, so one signature serves all.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name() -> Status {
                entry!(stringify!($name));
                say(concat!(stringify!($name), " is not supported"));
                NOT_SUPPORTED
            }
        )*
        /// Entry points that answer CUDA_ERROR_NOT_SUPPORTED.
        pub static MISSING: &[(&str, Address)] = &[$((stringify!($name), Address($name as *const c_void))),*];
    };
}

/// The address of a function.
#[derive(Clone, Copy)]
pub struct Address(pub *const c_void);
// SAFETY: code does not move.
unsafe impl Sync for Address {}

/// The function a program means by a name: the newest version this library has of it.
fn find(name: &str) -> Option<*const c_void> {
    let all = || IMPLEMENTED.iter().chain(MISSING);
    let exact = |n: &str| IMPLEMENTED.iter().find(|(k, _)| *k == n && !inject::hidden(k)).map(|(_, a)| a.0);
    // Names without a version mean the newest binary interface.
    let newest = match name {
        "cuGraphInstantiate" => exact("cuGraphInstantiateWithFlags"),
        "cuGetProcAddress" => exact("cuGetProcAddress_v2"),
        "cuCtxCreate" => exact("cuCtxCreate_v2"),
        _ => exact(&format!("{name}_v2")),
    };
    newest.or_else(|| exact(name)).or_else(|| all().find(|(k, _)| *k == name && !inject::hidden(k)).map(|(_, a)| a.0))
}

/// Looks a function up. An unknown name is found too late to be exported, so it is reported and not found.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    to: *mut *const c_void,
    _version: i32,
    _flags: u64,
    status: *mut i32,
) -> Status {
    entry!("cuGetProcAddress_v2");
    let found = match text(name) {
        Ok(n) => find(n).or_else(|| {
            say(&format!("cuGetProcAddress: {n} is not supported"));
            None
        }),
        Err(e) => return e,
    };
    // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND is 1.
    if !status.is_null() {
        status.write(i32::from(found.is_none()));
    }
    match found {
        Some(a) => finish(put(to, a)),
        None => {
            if !to.is_null() {
                to.write(std::ptr::null());
            }
            NOT_FOUND
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress(
    name: *const c_char,
    to: *mut *const c_void,
    version: i32,
    flags: u64,
) -> Status {
    entry!("cuGetProcAddress");
    cuGetProcAddress_v2(name, to, version, flags, std::ptr::null_mut())
}

/// Private tables of NVIDIA's own libraries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(_to: *mut *const c_void, _id: *const c_void) -> Status {
    entry!("cuGetExportTable");
    NOT_FOUND
}

table! {
    cuCtxCreate_v2, cuCtxCreate_v3, cuCtxCreate_v4, cuCtxDestroy_v2, cuCtxGetApiVersion, cuCtxGetCacheConfig,
    cuCtxGetCurrent, cuCtxGetDevice, cuCtxGetFlags, cuCtxGetId, cuCtxGetLimit, cuCtxGetStreamPriorityRange,
    cuCtxPopCurrent_v2, cuCtxPushCurrent_v2, cuCtxResetPersistingL2Cache, cuCtxSetCacheConfig, cuCtxSetCurrent,
    cuCtxSetFlags, cuCtxSetLimit, cuCtxSynchronize, cuDeviceCanAccessPeer, cuDeviceComputeCapability, cuDeviceGet,
    cuDeviceGetAttribute, cuDeviceGetCount, cuDeviceGetDefaultMemPool, cuDeviceGetMemPool, cuDeviceGetName,
    cuDeviceGetPCIBusId, cuDeviceGetUuid, cuDeviceGetUuid_v2, cuDevicePrimaryCtxGetState, cuDevicePrimaryCtxRelease,
    cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2, cuDevicePrimaryCtxRetain,
    cuDevicePrimaryCtxSetFlags_v2, cuDeviceSetMemPool, cuDeviceTotalMem, cuDeviceTotalMem_v2, cuDriverGetVersion,
    cuEventCreate, cuEventDestroy_v2, cuEventElapsedTime, cuEventElapsedTime_v2, cuEventQuery, cuEventRecord,
    cuEventRecordWithFlags, cuEventSynchronize, cuFuncGetAttribute, cuFuncGetModule, cuFuncGetName,
    cuFuncGetParamInfo, cuFuncLoad, cuFuncSetAttribute, cuFuncSetCacheConfig, cuFuncSetSharedMemConfig,
    cuGetErrorName, cuGetErrorString, cuGetExportTable, cuGetProcAddress, cuGetProcAddress_v2, cuGraphAddEmptyNode,
    cuGraphAddKernelNode_v2, cuGraphAddMemsetNode, cuGraphClone, cuGraphCreate, cuGraphDestroy, cuGraphExecDestroy,
    cuGraphExecKernelNodeSetParams_v2, cuGraphExecUpdate_v2, cuGraphGetNodes, cuGraphInstantiateWithFlags,
    cuGraphInstantiateWithParams, cuGraphInstantiate_v2, cuGraphKernelNodeSetParams_v2, cuGraphLaunch,
    cuGraphNodeGetType, cuGraphUpload, cuInit, cuKernelGetAttribute, cuKernelGetFunction, cuKernelSetAttribute,
    cuLaunchCooperativeKernel, cuLaunchHostFunc, cuLaunchKernel, cuLaunchKernelEx, cuLibraryGetGlobal,
    cuLibraryGetKernel, cuLibraryGetModule, cuLibraryLoadData, cuLibraryUnload, cuMemAdvise_v2, cuMemAllocAsync,
    cuMemAllocFromPoolAsync, cuMemAllocHost_v2, cuMemAllocManaged, cuMemAllocPitch_v2, cuMemAlloc_v2, cuMemFreeAsync,
    cuMemFreeHost, cuMemFree_v2, cuMemGetAddressRange_v2, cuMemGetInfo_v2, cuMemHostAlloc,
    cuMemHostGetDevicePointer_v2, cuMemHostGetFlags, cuMemHostRegister_v2, cuMemHostUnregister, cuMemPoolCreate,
    cuMemPoolDestroy, cuMemPoolGetAttribute, cuMemPoolSetAccess, cuMemPoolSetAttribute, cuMemPoolTrimTo,
    cuMemPrefetchAsync_v2, cuMemcpy, cuMemcpy2DAsync_v2, cuMemcpy2DUnaligned_v2, cuMemcpy2D_v2, cuMemcpyAsync,
    cuMemcpyDtoDAsync_v2, cuMemcpyDtoD_v2, cuMemcpyDtoHAsync_v2, cuMemcpyDtoH_v2, cuMemcpyHtoDAsync_v2,
    cuMemcpyHtoD_v2, cuMemcpyPeer, cuMemcpyPeerAsync, cuMemsetD16Async, cuMemsetD16_v2, cuMemsetD32Async,
    cuMemsetD32_v2, cuMemsetD8Async, cuMemsetD8_v2, cuModuleGetFunction, cuModuleGetFunctionCount,
    cuModuleGetGlobal_v2, cuModuleGetLoadingMode, cuModuleLoad, cuModuleLoadData, cuModuleLoadDataEx,
    cuModuleLoadFatBinary, cuModuleUnload, cuOccupancyAvailableDynamicSMemPerBlock,
    cuOccupancyMaxActiveBlocksPerMultiprocessor, cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags,
    cuOccupancyMaxActiveClusters, cuOccupancyMaxPotentialBlockSize, cuOccupancyMaxPotentialBlockSizeWithFlags,
    cuPointerGetAttribute, cuProfilerStart, cuProfilerStop, cuStreamAddCallback, cuStreamAttachMemAsync,
    cuStreamBeginCapture_v2, cuStreamCreate, cuStreamCreateWithPriority, cuStreamDestroy_v2, cuStreamEndCapture,
    cuStreamGetCaptureInfo_v2, cuStreamGetCtx, cuStreamGetFlags, cuStreamGetId, cuStreamGetPriority,
    cuStreamIsCapturing, cuStreamQuery, cuStreamSynchronize, cuStreamWaitEvent, cuThreadExchangeStreamCaptureMode,
}

missing! {
    cuArray3DCreate_v2, cuArray3DGetDescriptor_v2, cuArrayCreate_v2, cuArrayDestroy, cuArrayGetDescriptor_v2,
    cuArrayGetMemoryRequirements, cuArrayGetPlane, cuArrayGetSparseProperties, cuCoredumpDeregisterCompleteCallback,
    cuCoredumpDeregisterStartCallback, cuCoredumpGetAttribute, cuCoredumpGetAttributeGlobal,
    cuCoredumpRegisterCompleteCallback, cuCoredumpRegisterStartCallback, cuCoredumpSetAttribute,
    cuCoredumpSetAttributeGlobal, cuCtxAttach, cuCtxCreate, cuCtxDestroy, cuCtxDetach, cuCtxDisablePeerAccess,
    cuCtxEnablePeerAccess, cuCtxFromGreenCtx, cuCtxGetDevResource, cuCtxGetDevice_v2, cuCtxGetExecAffinity,
    cuCtxGetSharedMemConfig, cuCtxRecordEvent, cuCtxSetSharedMemConfig, cuCtxSynchronize_v2, cuCtxWaitEvent,
    cuDestroyExternalMemory, cuDestroyExternalSemaphore, cuDevResourceGenerateDesc, cuDevSmResourceSplit,
    cuDevSmResourceSplitByCount, cuDeviceGetByPCIBusId, cuDeviceGetCliqueCount, cuDeviceGetCliqueInfo,
    cuDeviceGetDevResource, cuDeviceGetExecAffinitySupport, cuDeviceGetFabricClusterUuid,
    cuDeviceGetGraphMemAttribute, cuDeviceGetHostAtomicCapabilities, cuDeviceGetLuid,
    cuDeviceGetP2PAtomicCapabilities, cuDeviceGetP2PAttribute, cuDeviceGetProperties,
    cuDeviceGetTexture1DLinearMaxWidth, cuDeviceGraphMemTrim, cuDeviceRegisterAsyncNotification,
    cuDeviceSetGraphMemAttribute, cuDeviceUnregisterAsyncNotification, cuExternalMemoryGetMappedBuffer,
    cuExternalMemoryGetMappedMipmappedArray, cuFlushGPUDirectRDMAWrites, cuFuncGetParamCount, cuFuncIsLoaded,
    cuFuncSetBlockShape, cuFuncSetSharedSize, cuGraphAddBatchMemOpNode, cuGraphAddChildGraphNode,
    cuGraphAddDependencies, cuGraphAddDependencies_v2, cuGraphAddEventRecordNode, cuGraphAddEventWaitNode,
    cuGraphAddExternalSemaphoresSignalNode, cuGraphAddExternalSemaphoresWaitNode, cuGraphAddHostNode,
    cuGraphAddKernelNode, cuGraphAddMemAllocNode, cuGraphAddMemFreeNode, cuGraphAddMemcpyNode, cuGraphAddNode,
    cuGraphAddNode_v2, cuGraphAddNode_v3, cuGraphBatchMemOpNodeGetParams, cuGraphBatchMemOpNodeSetParams,
    cuGraphChildGraphNodeGetGraph, cuGraphConditionalHandleCreate, cuGraphDebugDotPrint, cuGraphDestroyNode,
    cuGraphEventRecordNodeGetEvent, cuGraphEventRecordNodeSetEvent, cuGraphEventWaitNodeGetEvent,
    cuGraphEventWaitNodeSetEvent, cuGraphExecBatchMemOpNodeSetParams, cuGraphExecChildGraphNodeSetParams,
    cuGraphExecEventRecordNodeSetEvent, cuGraphExecEventWaitNodeSetEvent,
    cuGraphExecExternalSemaphoresSignalNodeSetParams, cuGraphExecExternalSemaphoresWaitNodeSetParams,
    cuGraphExecGetFlags, cuGraphExecGetId, cuGraphExecHostNodeSetParams, cuGraphExecKernelNodeSetParams,
    cuGraphExecMemcpyNodeSetParams, cuGraphExecMemsetNodeSetParams, cuGraphExecNodeSetParams, cuGraphExecUpdate,
    cuGraphExternalSemaphoresSignalNodeGetParams, cuGraphExternalSemaphoresSignalNodeSetParams,
    cuGraphExternalSemaphoresWaitNodeGetParams, cuGraphExternalSemaphoresWaitNodeSetParams, cuGraphGetEdges,
    cuGraphGetEdges_v2, cuGraphGetId, cuGraphGetRootNodes, cuGraphHostNodeGetParams, cuGraphHostNodeSetParams,
    cuGraphInstantiate, cuGraphKernelNodeCopyAttributes, cuGraphKernelNodeGetAttribute, cuGraphKernelNodeGetParams,
    cuGraphKernelNodeGetParams_v2, cuGraphKernelNodeSetAttribute, cuGraphKernelNodeSetParams,
    cuGraphMemAllocNodeGetParams, cuGraphMemFreeNodeGetParams, cuGraphMemcpyNodeGetParams, cuGraphMemcpyNodeSetParams,
    cuGraphMemsetNodeGetParams, cuGraphMemsetNodeSetParams, cuGraphNodeFindInClone, cuGraphNodeGetContainingGraph,
    cuGraphNodeGetDependencies, cuGraphNodeGetDependencies_v2, cuGraphNodeGetDependentNodes,
    cuGraphNodeGetDependentNodes_v2, cuGraphNodeGetEnabled, cuGraphNodeGetLocalId, cuGraphNodeGetParams,
    cuGraphNodeGetToolsId, cuGraphNodeSetEnabled, cuGraphNodeSetParams, cuGraphNodeSetParams_v2,
    cuGraphReleaseUserObject, cuGraphRemoveDependencies, cuGraphRemoveDependencies_v2, cuGraphRetainUserObject,
    cuGraphicsMapResources, cuGraphicsResourceGetMappedMipmappedArray, cuGraphicsResourceGetMappedPointer_v2,
    cuGraphicsResourceSetMapFlags_v2, cuGraphicsSubResourceGetMappedArray, cuGraphicsUnmapResources,
    cuGraphicsUnregisterResource, cuGreenCtxCreate, cuGreenCtxDestroy, cuGreenCtxGetDevResource, cuGreenCtxGetId,
    cuGreenCtxRecordEvent, cuGreenCtxStreamCreate, cuGreenCtxWaitEvent, cuImportExternalMemory,
    cuImportExternalSemaphore, cuIpcCloseMemHandle, cuIpcGetEventHandle, cuIpcGetMemHandle, cuIpcOpenEventHandle,
    cuIpcOpenMemHandle_v2, cuKernelGetLibrary, cuKernelGetName, cuKernelGetParamCount, cuKernelGetParamInfo,
    cuKernelSetCacheConfig, cuLaunch, cuLaunchCooperativeKernelMultiDevice, cuLaunchGrid, cuLaunchGridAsync,
    cuLaunchHostFunc_v2, cuLibraryEnumerateKernels, cuLibraryGetKernelCount, cuLibraryGetManaged,
    cuLibraryGetUnifiedFunction, cuLibraryLoadFromFile, cuLinkAddData_v2, cuLinkAddFile_v2, cuLinkComplete,
    cuLinkCreate_v2, cuLinkDestroy, cuLogicalEndpointAddDevice, cuLogicalEndpointBindAddr, cuLogicalEndpointBindMem,
    cuLogicalEndpointCreate, cuLogicalEndpointDestroy, cuLogicalEndpointExport, cuLogicalEndpointGetLimits,
    cuLogicalEndpointIdRelease, cuLogicalEndpointIdReserve, cuLogicalEndpointImport, cuLogicalEndpointQuery,
    cuLogicalEndpointUnbind, cuLogsCurrent, cuLogsDumpToFile, cuLogsDumpToMemory, cuLogsRegisterCallback,
    cuLogsUnregisterCallback, cuMemAddressFree, cuMemAddressReserve, cuMemAdvise, cuMemAlloc,
    cuMemBatchDecompressAsync, cuMemCreate, cuMemDiscardAndPrefetchBatchAsync, cuMemDiscardBatchAsync,
    cuMemExportToShareableHandle, cuMemFree, cuMemGetAccess, cuMemGetAllocationGranularity,
    cuMemGetAllocationPropertiesFromHandle, cuMemGetDefaultMemPool, cuMemGetHandleForAddressRange,
    cuMemGetLocationInfo, cuMemGetMemPool, cuMemImportFromShareableHandle, cuMemMap, cuMemMapArrayAsync,
    cuMemPoolExportPointer, cuMemPoolExportToShareableHandle, cuMemPoolGetAccess, cuMemPoolImportFromShareableHandle,
    cuMemPoolImportPointer, cuMemPrefetchAsync, cuMemPrefetchBatchAsync, cuMemRangeGetAttribute,
    cuMemRangeGetAttributes, cuMemRelease, cuMemRetainAllocationHandle, cuMemSetAccess, cuMemSetMemPool, cuMemUnmap,
    cuMemcpy3DAsync_v2, cuMemcpy3DBatchAsync, cuMemcpy3DBatchAsync_v2, cuMemcpy3DPeer, cuMemcpy3DPeerAsync,
    cuMemcpy3DWithAttributesAsync, cuMemcpy3D_v2, cuMemcpyAtoA_v2, cuMemcpyAtoD_v2, cuMemcpyAtoHAsync_v2,
    cuMemcpyAtoH_v2, cuMemcpyBatchAsync, cuMemcpyBatchAsync_v2, cuMemcpyDtoA_v2, cuMemcpyHtoAAsync_v2,
    cuMemcpyHtoA_v2, cuMemcpyWithAttributesAsync, cuMemsetD2D16Async, cuMemsetD2D16_v2, cuMemsetD2D32Async,
    cuMemsetD2D32_v2, cuMemsetD2D8Async, cuMemsetD2D8_v2, cuMipmappedArrayCreate, cuMipmappedArrayDestroy,
    cuMipmappedArrayGetLevel, cuMipmappedArrayGetMemoryRequirements, cuMipmappedArrayGetSparseProperties,
    cuModuleEnumerateFunctions, cuModuleGetSurfRef, cuModuleGetTexRef, cuMulticastAddDevice, cuMulticastBindAddr,
    cuMulticastBindAddr_v2, cuMulticastBindMem, cuMulticastBindMem_v2, cuMulticastCreate, cuMulticastGetGranularity,
    cuMulticastUnbind, cuOccupancyMaxPotentialClusterSize, cuParamSetSize, cuParamSetTexRef, cuParamSetf, cuParamSeti,
    cuParamSetv, cuPointerGetAttributes, cuPointerSetAttribute, cuProfilerInitialize, cuSignalExternalSemaphoresAsync,
    cuStreamBatchMemOp, cuStreamBatchMemOp_v2, cuStreamBeginCapture, cuStreamBeginCaptureToCig,
    cuStreamBeginCaptureToGraph, cuStreamBeginRecaptureToGraph, cuStreamCopyAttributes, cuStreamEndCaptureToCig,
    cuStreamGetAttribute, cuStreamGetCaptureInfo, cuStreamGetCaptureInfo_v3, cuStreamGetCtx_v2,
    cuStreamGetDevResource, cuStreamGetDevice, cuStreamGetGreenCtx, cuStreamSetAttribute,
    cuStreamUpdateCaptureDependencies, cuStreamUpdateCaptureDependencies_v2, cuStreamWaitValue32,
    cuStreamWaitValue32_v2, cuStreamWaitValue64, cuStreamWaitValue64_v2, cuStreamWriteValue32,
    cuStreamWriteValue32_v2, cuStreamWriteValue64, cuStreamWriteValue64_v2, cuSurfObjectCreate, cuSurfObjectDestroy,
    cuSurfObjectGetResourceDesc, cuSurfRefGetArray, cuSurfRefSetArray, cuTensorMapEncodeIm2col,
    cuTensorMapEncodeIm2colWide, cuTensorMapEncodeTiled, cuTensorMapReplaceAddress, cuTexObjectCreate,
    cuTexObjectDestroy, cuTexObjectGetResourceDesc, cuTexObjectGetResourceViewDesc, cuTexObjectGetTextureDesc,
    cuTexRefCreate, cuTexRefDestroy, cuTexRefGetAddressMode, cuTexRefGetAddress_v2, cuTexRefGetArray,
    cuTexRefGetBorderColor, cuTexRefGetFilterMode, cuTexRefGetFlags, cuTexRefGetFormat, cuTexRefGetMaxAnisotropy,
    cuTexRefGetMipmapFilterMode, cuTexRefGetMipmapLevelBias, cuTexRefGetMipmapLevelClamp, cuTexRefGetMipmappedArray,
    cuTexRefSetAddress2D_v3, cuTexRefSetAddressMode, cuTexRefSetAddress_v2, cuTexRefSetArray, cuTexRefSetBorderColor,
    cuTexRefSetFilterMode, cuTexRefSetFlags, cuTexRefSetFormat, cuTexRefSetMaxAnisotropy, cuTexRefSetMipmapFilterMode,
    cuTexRefSetMipmapLevelBias, cuTexRefSetMipmapLevelClamp, cuTexRefSetMipmappedArray, cuUserObjectCreate,
    cuUserObjectRelease, cuUserObjectRetain, cuWaitExternalSemaphoresAsync,
}
