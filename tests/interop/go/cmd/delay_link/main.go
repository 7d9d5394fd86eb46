// A long path in user space: two TUN devices, and what goes into the one comes out of the other, later and at a limited rate.
// Prints "ready" when the devices exist; they go away with the program. Needs root.
//
//	delay_link DEVICE DEVICE MILLISECONDS MEGABITS [PERCENT]
//
// MILLISECONDS is the delay each way; MEGABITS a second each way, 0 for no limit; PERCENT of the packets are lost each way, by chance.
// From each SIGUSR1 on the delay is ten times as long.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	setInterface = 0x400454ca // TUNSETIFF, linux/if_tun.h
	tunWithoutPI = 0x1001     // IFF_TUN | IFF_NO_PI
	largest      = 65536
	// The router's queue: what would wait longer is dropped.
	queue = 200 * time.Millisecond
)

func main() {
	if len(os.Args) != 5 && len(os.Args) != 6 {
		log.Fatal("usage: delay_link DEVICE DEVICE MILLISECONDS MEGABITS [PERCENT]")
	}
	var numbers [3]float64
	for i, argument := range os.Args[3:] {
		number, err := strconv.ParseFloat(argument, 64)
		if err != nil {
			log.Fatal(err)
		}
		numbers[i] = number
	}
	one, other := device(os.Args[1]), device(os.Args[2])
	path := &path{megabits: numbers[1], loss: numbers[2] / 100}
	path.delay.Store(int64(numbers[0] * float64(time.Millisecond)))
	slower := make(chan os.Signal, 1)
	signal.Notify(slower, syscall.SIGUSR1)
	go func() {
		for range slower {
			path.delay.Store(10 * path.delay.Load())
		}
	}()
	go path.carry(one, other)
	go path.carry(other, one)
	fmt.Println("ready")
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
}

func device(name string) int {
	file, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		log.Fatalf("/dev/net/tun: %v", err)
	}
	// struct ifreq: 16 bytes of name, then the flags.
	var request bytes.Buffer
	request.Write(append([]byte(name), make([]byte, 16-len(name))...))
	binary.Write(&request, binary.NativeEndian, uint16(tunWithoutPI))
	request.Write(make([]byte, 22))
	if _, _, failed := syscall.Syscall(syscall.SYS_IOCTL, uintptr(file), setInterface, uintptr(unsafe.Pointer(&request.Bytes()[0]))); failed != 0 {
		log.Fatalf("%s: %v", name, failed)
	}
	return file
}

type path struct {
	delay    atomic.Int64 // in nanoseconds
	megabits float64
	loss     float64 // of one packet
}

type packet struct {
	bytes []byte
	due   time.Time
}

func (path *path) carry(from, to int) {
	waiting := make(chan packet, largest)
	go func() {
		for next := range waiting {
			time.Sleep(time.Until(next.due))
			syscall.Write(to, next.bytes) // a device that is down drops it, as a cable would
		}
	}()
	buffer := make([]byte, largest)
	var free time.Time // when the line has sent all that is queued
	for {
		length, err := syscall.Read(from, buffer)
		if err != nil {
			time.Sleep(10 * time.Millisecond) // not up yet
			continue
		}
		if rand.Float64() < path.loss {
			continue
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		if path.megabits > 0 {
			free = free.Add(time.Duration(float64(length) * 8 / path.megabits * float64(time.Microsecond)))
		}
		if free.Sub(now) > queue {
			continue
		}
		select {
		case waiting <- packet{append([]byte(nil), buffer[:length]...), free.Add(time.Duration(path.delay.Load()))}:
		default:
		}
	}
}
