"""Bytes that every packet and every transport block carries beside an application's."""

PACKET_BYTES = 1400  # of application data in one IP packet

PACKET = {  # of each packet: NR has no concatenation, so that each has RLC and MAC headers of its own
    "IP": 20,  # version 4, RFC 791
    "TCP": 20,  # RFC 9293, without options
    "SDAP": 1,  # TS 37.324 6.2.2.3
    "PDCP": 3,  # 18-bit sequence number, TS 38.323 6.2.2.3
    "RLC": 3,  # acknowledged mode, 18 bits, TS 38.322 6.2.2.4
    "MAC": 3,  # subheader with 16 bits of length, TS 38.321 6.1.2
}
BLOCK = {  # of each transport block
    "segment": 8,  # the packet that the block before cut begins anew: RLC with an offset, and a MAC subheader
    "control element": 2,  # a short buffer status report, or a timing advance
}
