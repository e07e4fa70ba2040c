// Command skew runs a program whose wall clock is wrong: skew OFFSET PROGRAM [ARGUMENTS].
//
// Time namespaces shift the monotonic and the boot clock only, and preloaded libraries do not reach static programs. So the program is
// started without the kernel's vDSO, which makes it ask for the time by system calls, and a seccomp filter hands those about the wall clock
// to this process, which answers them.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

const (
	seccompSetModeFilter = 1
	filterNewListener    = 1 << 3
	retAllow             = 0x7fff0000
	retNotify            = 0x7fc00000
	ioctlReceive         = 0xc0502100
	ioctlSend            = 0xc0182101

	prSetNoNewPrivs = 38
	prSetDeathSig   = 1

	auxEnd        = 0
	auxIgnore     = 1
	auxVdso       = 33
	clockRealtime = 0
	clockCoarse   = 5
)

type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

func main() {
	if len(os.Args) < 3 {
		fail("usage: skew OFFSET PROGRAM [ARGUMENTS]")
	}
	offset, err := time.ParseDuration(os.Args[1])
	if err != nil {
		fail(err)
	}
	// The filter is this thread's and its children's, and the children are traced by it.
	runtime.LockOSThread()
	syscall.RawSyscall(syscall.SYS_PRCTL, prSetDeathSig, uintptr(syscall.SIGKILL), 0)
	listener := filter()
	program := exec.Command(os.Args[2], os.Args[3:]...)
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	program.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	go answer(listener, offset)
	if err := program.Start(); err != nil {
		fail(err)
	}
	withoutVdso(program.Process.Pid)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for s := range signals {
			_ = program.Process.Signal(s)
		}
	}()
	_ = program.Wait()
	os.Exit(program.ProcessState.ExitCode())
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "skew:", why)
	os.Exit(1)
}

// filter makes the kernel ask us about clock_gettime of the wall clock, for this thread and the processes it starts.
func filter() uintptr {
	type instruction struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}
	const load, equal, ret = 0x20, 0x15, 0x06
	program := []instruction{
		{load, 0, 0, 0}, // the number of the call
		{equal, 0, 4, syscall.SYS_CLOCK_GETTIME},
		{load, 0, 0, 16}, // its first argument
		{equal, 1, 0, clockRealtime},
		{equal, 0, 1, clockCoarse},
		{ret, 0, 0, retNotify},
		{ret, 0, 0, retAllow},
	}
	described := struct {
		length uint16
		filter *instruction
	}{uint16(len(program)), &program[0]}
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); e != 0 {
		fail(e)
	}
	fd, _, e := syscall.RawSyscall(seccompNumber(), seccompSetModeFilter, filterNewListener, uintptr(unsafe.Pointer(&described)))
	if e != 0 {
		fail(e)
	}
	return fd
}

func seccompNumber() uintptr {
	if runtime.GOARCH == "arm64" {
		return 277
	}
	return 317
}

// answer tells the shifted time until the program is gone.
func answer(listener uintptr, offset time.Duration) {
	for {
		var asked notification
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, listener, ioctlReceive, uintptr(unsafe.Pointer(&asked))); e != 0 {
			if e == syscall.EINTR || e == syscall.ENOENT {
				continue
			}
			return
		}
		reply := response{id: asked.id}
		if !write(int(asked.pid), uintptr(asked.args[1]), time.Now().Add(offset)) {
			reply.err = -int32(syscall.EFAULT)
		}
		_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, listener, ioctlSend, uintptr(unsafe.Pointer(&reply)))
	}
}

// write puts a timespec into the memory of a process.
func write(pid int, address uintptr, now time.Time) bool {
	var timespec [16]byte
	binary.NativeEndian.PutUint64(timespec[:8], uint64(now.Unix()))
	binary.NativeEndian.PutUint64(timespec[8:], uint64(now.Nanosecond()))
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer memory.Close()
	_, err = memory.WriteAt(timespec[:], int64(address))
	return err == nil
}

// withoutVdso hides the vDSO from a process that stands at its first instruction, and lets it go.
func withoutVdso(pid int) {
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		fail(fmt.Sprintf("the program does not stop at its start: %v %v", status, err))
	}
	var regs syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
		fail(err)
	}
	at := stackPointer(&regs)
	word := func() uint64 {
		var bytes [8]byte
		if _, err := syscall.PtracePeekData(pid, at, bytes[:]); err != nil {
			fail(err)
		}
		at += 8
		return binary.NativeEndian.Uint64(bytes[:])
	}
	at += uintptr(word()+1) * 8 // argc, argv and its end
	for word() != 0 {           // the environment
	}
	for kind := word(); kind != auxEnd; kind = word() {
		if kind == auxVdso {
			var ignore [8]byte
			binary.NativeEndian.PutUint64(ignore[:], auxIgnore)
			if _, err := syscall.PtracePokeData(pid, at-8, ignore[:]); err != nil {
				fail(err)
			}
		}
		word()
	}
	if err := syscall.PtraceDetach(pid); err != nil {
		fail(err)
	}
}
