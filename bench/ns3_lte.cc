// Downlink of one LTE cell in ns-3: Poisson packets to devices at one SINR; delivered bytes and delays as JSON.
// Built and run by bench/lte.py. FDD, 100 resource blocks of 15 kHz, proportional fair, HARQ, RLC UM.
#include "ns3/applications-module.h"
#include "ns3/core-module.h"
#include "ns3/internet-module.h"
#include "ns3/lte-module.h"
#include "ns3/mobility-module.h"
#include "ns3/network-module.h"
#include "ns3/point-to-point-module.h"

#include <cmath>
#include <cstdio>
#include <vector>

using namespace ns3;

static double g_settled_s = 1.0;
static uint64_t g_bytes = 0, g_sent = 0;
static std::vector<double> g_delay_ms;
static double g_sinr = 0;

static void Received(Ptr<Socket> socket) {
    Address from;
    while (Ptr<Packet> packet = socket->RecvFrom(from)) {
        SeqTsHeader header;
        const uint32_t size = packet->GetSize();
        packet->RemoveHeader(header);
        if (Simulator::Now().GetSeconds() >= g_settled_s) g_bytes += size;
        if (header.GetTs().GetSeconds() >= g_settled_s) g_delay_ms.push_back((Simulator::Now() - header.GetTs()).GetSeconds() * 1e3);
    }
}

static void Measured(uint16_t, uint16_t, double, double sinr, uint8_t) { g_sinr = sinr; }

static void Send(Ptr<Socket> socket, uint32_t nbytes, Ptr<ExponentialRandomVariable> gap, double until_s) {
    SeqTsHeader header;  // stamped now
    Ptr<Packet> packet = Create<Packet>(nbytes - header.GetSerializedSize());
    packet->AddHeader(header);
    socket->Send(packet);
    if (Simulator::Now().GetSeconds() >= g_settled_s) ++g_sent;
    const Time next = Seconds(gap->GetValue());
    if ((Simulator::Now() + next).GetSeconds() < until_s) Simulator::Schedule(next, &Send, socket, nbytes, gap, until_s);
}

int main(int argc, char** argv) {
    uint32_t ues = 10, nbytes = 1400, seed = 1;
    double mbps = 10, seconds = 10, distance_m = 1000, power_dbm = 30;
    CommandLine cmd;
    cmd.AddValue("ues", "devices", ues);
    cmd.AddValue("nbytes", "of a packet, IP aside", nbytes);
    cmd.AddValue("mbps", "offered to all together", mbps);
    cmd.AddValue("seconds", "of sending, after one second", seconds);
    cmd.AddValue("distance", "m, of every device", distance_m);
    cmd.AddValue("power", "dBm of the base station", power_dbm);
    cmd.AddValue("seed", "", seed);
    cmd.Parse(argc, argv);
    RngSeedManager::SetSeed(seed);
    Config::SetDefault("ns3::LteAmc::AmcModel", EnumValue(LteAmc::MiErrorModel));
    Config::SetDefault("ns3::LteSpectrumPhy::CtrlErrorModelEnabled", BooleanValue(false));
    Config::SetDefault("ns3::LteRlcUm::MaxTxBufferSize", UintegerValue(100 * 1000 * 1000));
    Config::SetDefault("ns3::LteEnbPhy::TxPower", DoubleValue(power_dbm));
    Config::SetDefault("ns3::LteEnbRrc::SrsPeriodicity", UintegerValue(320));

    Ptr<LteHelper> lte = CreateObject<LteHelper>();
    Ptr<PointToPointEpcHelper> epc = CreateObject<PointToPointEpcHelper>();
    lte->SetEpcHelper(epc);
    lte->SetSchedulerType("ns3::PfFfMacScheduler");
    lte->SetPathlossModelType(FriisPropagationLossModel::GetTypeId());
    lte->SetEnbDeviceAttribute("DlBandwidth", UintegerValue(100));
    lte->SetEnbDeviceAttribute("UlBandwidth", UintegerValue(100));

    NodeContainer host, station, devices;
    host.Create(1);
    station.Create(1);
    devices.Create(ues);
    InternetStackHelper internet;
    internet.Install(host);
    internet.Install(devices);
    PointToPointHelper fibre;
    fibre.SetDeviceAttribute("DataRate", DataRateValue(DataRate("100Gb/s")));
    fibre.SetDeviceAttribute("Mtu", UintegerValue(1500));
    fibre.SetChannelAttribute("Delay", TimeValue(Seconds(0)));
    NetDeviceContainer ends = fibre.Install(epc->GetPgwNode(), host.Get(0));
    Ipv4AddressHelper addresses;
    addresses.SetBase("1.0.0.0", "255.0.0.0");
    addresses.Assign(ends);
    Ipv4StaticRoutingHelper routing;
    routing.GetStaticRouting(host.Get(0)->GetObject<Ipv4>())
        ->AddNetworkRouteTo(Ipv4Address("7.0.0.0"), Ipv4Mask("255.0.0.0"), 1);

    Ptr<ListPositionAllocator> places = CreateObject<ListPositionAllocator>();
    places->Add(Vector(0, 0, 0));
    for (uint32_t i = 0; i < ues; ++i)
        places->Add(Vector(distance_m * std::cos(2 * M_PI * i / ues), distance_m * std::sin(2 * M_PI * i / ues), 0));
    MobilityHelper mobility;
    mobility.SetPositionAllocator(places);
    mobility.Install(station);
    mobility.Install(devices);

    NetDeviceContainer enb = lte->InstallEnbDevice(station), ue = lte->InstallUeDevice(devices);
    Ipv4InterfaceContainer at = epc->AssignUeIpv4Address(ue);
    for (uint32_t i = 0; i < ues; ++i)
        routing.GetStaticRouting(devices.Get(i)->GetObject<Ipv4>())->SetDefaultRoute(epc->GetUeDefaultGatewayAddress(), 1);
    lte->Attach(ue, enb.Get(0));

    for (uint32_t i = 0; i < ues; ++i) {
        Ptr<Socket> sink = Socket::CreateSocket(devices.Get(i), UdpSocketFactory::GetTypeId());
        sink->Bind(InetSocketAddress(Ipv4Address::GetAny(), 5000));
        sink->SetRecvCallback(MakeCallback(&Received));
        Ptr<Socket> source = Socket::CreateSocket(host.Get(0), UdpSocketFactory::GetTypeId());
        source->Connect(InetSocketAddress(at.GetAddress(i), 5000));
        Ptr<ExponentialRandomVariable> gap = CreateObject<ExponentialRandomVariable>();
        gap->SetAttribute("Mean", DoubleValue(nbytes * 8e-6 * ues / mbps));
        Simulator::Schedule(Seconds(0.5 + gap->GetValue()), &Send, source, nbytes, gap, g_settled_s + seconds);
    }
    Config::ConnectWithoutContext("/NodeList/*/DeviceList/*/ComponentCarrierMapUe/*/LteUePhy/ReportCurrentCellRsrpSinr",
                                  MakeCallback(&Measured));
    Simulator::Stop(Seconds(g_settled_s + seconds));
    Simulator::Run();
    std::printf("{\"sinr_db\": %.3f, \"sent\": %lu, \"mbps\": %.4f, \"delay_ms\": [", 10 * std::log10(g_sinr),
                (unsigned long)g_sent, g_bytes * 8e-6 / seconds);
    for (size_t i = 0; i < g_delay_ms.size(); ++i) std::printf("%s%.3f", i ? ", " : "", g_delay_ms[i]);
    std::printf("]}\n");
    Simulator::Destroy();
    return 0;
}
